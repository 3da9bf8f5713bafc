// What the dictionary is; the fields `model.*`.
#pragma once

#include <cstdint>
#include <string>

namespace megadict {

inline constexpr const char* kEncoders[] = {"linear", "mlp", "deep"};
inline constexpr const char* kDecoders[] = {"linear", "tied", "deep"};
inline constexpr const char* kBDecStarts[] = {"geometric_median", "mean", "zero"};
inline constexpr int64_t kMostLatents = 2147483648;  // latent indices travel as 32-bit integers

struct ModelConfig {
  std::string encoder = "linear";   // linear | mlp | deep (model/hidden.h)
  std::string activation = "topk";  // topk | relu | batchtopk | jumprelu | gated
  std::string decoder = "linear";   // linear | tied | deep
  // Widths of the hidden layers, "1024" or "256,256"; "" = one as wide as the rows (deep alone).
  std::string hidden;
  bool decoder_norm = false;       // deep decoder: a LayerNorm after its ReLU
  int64_t n_latents = 0;           // 0 = 32 x d
  int64_t k = 32;                  // topk: of each row; batchtopk: on average of a batch
  double l1_coefficient = 1.0;     // relu, gated; weighted by decoder norm, divided by var_total
  int64_t l1_warmup_steps = 2000;  // linear from 0; jumprelu's penalty, too
  // jumprelu. Penalty: l0_coefficient (L0 / l0_target - 1)^2, or l0_coefficient L0 where l0_target
  // is 0; divided by var_total.
  double jumprelu_threshold = 1e-3;  // at the start
  double jumprelu_bandwidth = 1e-3;  // of the rectangle that stands for the jump's derivative
  bool jumprelu_log = false;         // a threshold's logarithm is learnt (B8); slow in short runs
  double l0_coefficient = 1.0;
  double l0_target = 20;
  // Prefixes of the latents that reconstruct alone, "64,0.25,1024": sizes, or shares where below 1.
  std::string matryoshka;
  std::string matryoshka_weights;                // of the prefixes in the loss; "" = alike, sum 1
  std::string b_dec_start = "geometric_median";  // of the sample; or mean | zero
  std::string init_from;  // another dictionary: run or checkpoint folder, "" = fresh
};

}  // namespace megadict
