// One optimiser step over the mesh: micro-batches in, sums out.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "base/stop_request.h"
#include "data/batch_stream.h"
#include "kernels/screen.h"
#include "model/gradients.h"
#include "train/config.h"
#include "train/state.h"

namespace megadict {

struct StepConfig {
  OptimConfig optim;
  DeadConfig dead;
  int64_t l1_warmup_steps = 0;
  int64_t total_steps = 0;
  std::string exchange = "gradients";  // over the data axis; or "tokens"
  bool deterministic = false;          // the same weights on every mesh, bit for bit; tokens only
  // Between micro-batches: collectives of one are under way while another is encoded.
  // The same bits; up to five micro-batches are held instead of one.
  bool overlap = false;
  uint64_t seed = 0;  // run.seed
};

// Where the seconds of a step went on this rank, exchanges included.
struct StageSeconds {
  double wait = 0;    // for this rank's reader
  double rows = 0;    // gathering them
  double encode = 0;  // codes
  double decode = 0;  // reconstruction
  double auxk = 0;    // of dead latents, without their part of the update
  double update = 0;  // gradients, optimiser, new rows
  double step = 0;    // all of it
};

struct StepResult {
  int64_t rows = 0;
  double lr = 0;
  double loss = 0;  // all terms
  double fvu = 0;   // sum |r|^2 / (B var_total)
  double mse = 0;   // sum |r|^2 / B
  double aux_loss = 0;
  double l1_loss = 0;
  double l0_loss = 0;
  double preact_loss = 0;
  double gate_loss = 0;                 // gated: of what the gates alone reconstruct, as fvu
  std::vector<double> prefix_fvu = {};  // of matryoshka's prefixes, the last = fvu; else empty
  double l0 = 0;
  double l1 = 0;          // sum z |w_dec| per row, gated: of the gates; before the coefficient
  double grad_norm = -1;  // of the mean gradient; -1 where it was not asked for
  StopRequest stop = StopRequest::none;
  double clock_s = 0;  // rank 0's, so that all ranks decide alike
  bool finite = true;
  ScreenStats screen;  // of this rank's latents
  StageSeconds seconds;
};

// Buffers that live as long as the run.
struct StepWorkspace {
  Gradients gradients;           // of my data row's tokens; of rows only without the one pass
  at::Tensor fired_l;            // bool
  std::optional<Screen> screen;  // of the shard's encoder rows; none = exact encode
  at::Tensor b_dec_d;            // what the last step applied: B times the mean gradient
};
// `encode`: kernels.encode, resolved.
StepWorkspace make_workspace(const TrainState& state, const std::string& encode);

using MicroBatchSource = std::function<MicroBatch()>;

// Takes the next step's micro-batches from `next` and updates `state`. Collective over the mesh.
// Where anything is not finite, b_dec stays and `finite` is false on every rank; a rank that saw
// it says which rows. `want_norm`: also compute grad_norm (all ranks alike).
StepResult train_step(const Mesh& mesh, const StepConfig& config, const MicroBatchSource& next,
                      bool want_norm, TrainState& state, StepWorkspace& workspace);

}  // namespace megadict
