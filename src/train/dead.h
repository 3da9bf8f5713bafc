// Dead latents: not fired (z > 0) in the last dead.window_tokens rows of the global stream. The
// counters are exact and the same on all ranks of a data axis.
#pragma once

#include <array>

#include "kernels/codes.h"
#include "train/state.h"

namespace megadict {

// Which local latents have an entry in any of the codes seen this step.
void mark_fired(const Codes& codes, at::Tensor& fired_l);

// Merges the fired latents over the data axis (one bit each) and advances the counters by the
// batch's rows. Collective over data.
void count_fired(const Mesh& mesh, const at::Tensor& fired_l, int64_t batch_rows,
                 TrainState& state);

// Bool [l]; nothing is dead before one window has passed.
at::Tensor dead_mask(const TrainState& state, int64_t window_tokens);

struct DeadCounts {
  int64_t dead = -1;  // over all shards; -1 while unknown
  // Latents by their rows since they last fired: 0, 1 to 9, 10 to 99, ..., 1e15 and more. Whoever
  // has not fired yet counts from the run's start.
  std::array<int64_t, 17> since_fired = {};
};
// Collective over feature.
DeadCounts count_dead(const Mesh& mesh, const TrainState& state, int64_t window_tokens);

}  // namespace megadict
