// BatchTopK's threshold for use outside training (model/dictionary.h).
#pragma once

#include <span>

#include "data/shard_index.h"
#include "train/state.h"

namespace megadict {

// After a step whose smallest code was `least`: the running average, about over the last tenth of
// the steps so far and no more than 1000 of them. It lags while codes grow.
void update_threshold(double least, TrainState& state);

// What the weights as they are want: the mean of the exact thresholds of the batches that `rows`
// (global ids) fill, encoded in fp32. Where the activation has none, the state's. Collective over
// the mesh.
double calibrated_threshold(const Mesh& mesh, const ShardIndex& data, std::span<const int64_t> rows,
                            int64_t batch_rows, const TrainState& state);

}  // namespace megadict
