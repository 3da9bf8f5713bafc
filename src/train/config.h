// How the dictionary is trained; the fields `optim.*`, `dead.*`, `kernels.*`, `run.*`, `log.*`,
// `checkpoint.*`, `eval.*`.
#pragma once

#include <cstdint>
#include <string>

#include "train/schedule.h"

namespace megadict {

inline constexpr double kAutoDecay = -1;

struct OptimConfig {
  std::string name = "adam";
  double lr = kAutoRate;  // or kFieldRate
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  int64_t warmup_steps = -1;    // -1 = the smaller of 1000 and 5 % of the run
  double decay_fraction = 0.2;  // linear to 0 over the last part of the run
  double clip_norm = 0;         // true global norm of the mean gradient; 0 = off
  double ema = 0;               // decay of an averaged copy of the weights; 0 = off
  // Decay of hidden layers' weights (model/hidden.h), apart from the gradient: w <- w - lr decay w.
  double hidden_decay = kAutoDecay;  // 5e-4 with a deep encoder or decoder, else 0
  bool train_norms = true;           // LayerNorm's gain and shift
};

inline constexpr int64_t kMostResampleRows = 4'194'304;  // their weights' sum stays below 2^63

struct DeadConfig {
  double auxk_alpha = 1.0 / 32;
  int64_t k_aux = 0;              // 0 = d / 2
  int64_t window_tokens = 0;      // 0 = the smaller of 10,000,000 and data.tokens / 10
  int64_t auxk_every = 1;         // AuxK acts in every m-th step
  double preact_coefficient = 0;  // jumprelu (train/preact.h); 0 = off
  int64_t auxk_stratum = 0;       // dead latents that compete in a step at most; 0 = all (exact)
  std::string resample_steps = "never";  // never | every:N | N,N,... (train/resample.h)
  int64_t resample_rows = 819'200;       // whose losses the draw is made from
  double resample_scale = 0.2;           // of an encoder row, x the mean norm of the alive ones
  int64_t resample_warmup_steps = 0;     // the rate rises from 0 again after a resampling
};

struct KernelConfig {
  std::string encode = "auto";  // auto | fp32 | screen_int8 | screen_bf16 (kernels/screen.h)
  std::string isa = "auto";     // auto | a name of all_isas() (kernels/isa.h)
  std::string set = "auto";     // auto | cpu | tensor (kernels/kernel_set.h)
};

struct RunConfig {
  std::string dir;
  uint64_t seed = 0;
  std::string resume = "never";  // never | auto | PATH of a checkpoint
  std::string device = "cpu";    // cpu | cuda
  int threads = 0;               // 0 = affinity mask / local ranks
  bool check_memory = true;      // refuse what does not fit
  bool deterministic = false;    // the same weights on every mesh, bit for bit
};

struct LogConfig {
  int64_t every_steps = 50;
};

struct CheckpointConfig {
  int64_t every_steps = 0;    // 0 = only by time and at the end
  double every_minutes = 15;  // 0 = off
  int keep = 2;               // the newest
  double keep_ratio = 0;      // and the first of every such factor in steps; 0 = none
};

struct EvalConfig {
  int64_t every_steps = 0;  // 0 = only at the end
  int64_t tokens = 0;       // held-out rows to use; 0 = all
  std::string truth;        // folder of `data synth`: prints mcc against its dictionary
};

}  // namespace megadict
