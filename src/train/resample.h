// Resampling of dead latents (Bricken et al. 2023, "Neuron resampling"): a dead latent starts anew
// from a row that the dictionary reconstructs badly.
//
// Rows are drawn with probability proportional to the square of their loss |x - x_hat|^2 under the
// current weights, in exact fp32 encoding and exact sums: from the same weights every mesh draws
// the same rows and writes the same bits. A latent's draw depends on (seed, step, latent) alone; a
// row that another latent has is drawn again a few times, because equal rows would learn alike.
// With v = (x - b_dec) / |x - b_dec| the latent gets the decoder row v, the encoder row
// resample_scale * (mean norm of the alive encoder rows) * v (tied: the root of that scale), bias
// 0, an empty optimiser state and a counter of 0.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/stop_request.h"
#include "data/batch_plan.h"
#include "kernels/screen.h"
#include "train/config.h"
#include "train/state.h"

namespace megadict {

// dead.resample_steps: after how many steps.
struct ResampleSteps {
  int64_t every = 0;            // 0 = none
  std::vector<int64_t> listed;  // ascending
  bool due(int64_t step) const;
  int64_t first() const;  // 0 = never
};
// Exit 2 (agreed) for any other text.
ResampleSteps resample_steps(const std::string& text);

// What a latent has besides its rows, and the value it starts anew from.
struct LatentScalar {
  at::Tensor value_l;
  Moments moments;       // of the own latents
  at::Tensor average_l;  // of the own latents; undefined without optim.ema
  float start;
};
struct ResampleRule {  // one row per activation that can be resampled
  std::string_view activation;
  std::vector<LatentScalar> (*scalars)(const TrainState&);
};
// nullptr where the activation has none.
const ResampleRule* resample_rule(std::string_view activation);

// The rows the run meets next, in whole batches from `step` on, after its end those of its start:
// at least `count` where an epoch has so many. Sorted, none twice; the same on every mesh.
std::vector<int64_t> rows_to_come(const BatchPlan& plan, int64_t step, int64_t count);

struct ResampleArgs {
  const ShardIndex& data;
  std::span<const int64_t> rows;  // sorted global ids
  int64_t block_rows = 4096;      // looked at together; of no influence on the result
  int64_t window_tokens = 0;
  double scale = 0.2;
  uint64_t seed = 0;
  double threshold = 0;  // see Dictionary::threshold; for activations that have one
};

struct Resampled {
  int64_t latents = 0;                     // over all shards
  int64_t distinct_rows = 0;               // among those they started from
  StopRequest stop = StopRequest::none;    // asked for on the way: then nothing was changed
  std::vector<int64_t> of_shard;           // local ids, ascending
  std::vector<int64_t> row_of_shard = {};  // the global row each started from
};

// Collective over the mesh. Exit 4 (agreed) where a loss is not finite. `screen` (or nullptr)
// follows the encoder rows.
Resampled resample_dead(const Mesh& mesh, const ResampleArgs& args, Screen* screen,
                        TrainState& state);

// The factor of the learning rate: from 0 to 1 over dead.resample_warmup_steps.
double since_resampling(const DeadConfig& dead, const TrainState& state);

}  // namespace megadict
