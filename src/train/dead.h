// Dead latents: not fired (z > 0) in the last dead.window_tokens rows of the global stream. The
// counters are exact and the same on all ranks of a data axis.
#pragma once

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

// Dead latents over all shards, or -1 while unknown. Collective over feature.
int64_t count_dead(const Mesh& mesh, const TrainState& state, int64_t window_tokens);

}  // namespace megadict
