// One threshold for all latents that lets k of them through per row, on average of some rows: what
// topk and batchtopk become where a row has to be encoded alone, z = relu(v) where v > threshold
// (a jumprelu with equal thresholds).
#pragma once

#include "data/normalization.h"
#include "data/shard_index.h"
#include "model/dictionary.h"

namespace megadict {

struct Calibration {
  double threshold = 0;  // midway between the N k-th largest positive pre-activation and the next
  double l0 = 0;         // that it gives on the same rows
  int64_t rows = 0;
};

// On the first `rows` rows of the data (0 = all), encoded in fp32; one process holds all latents.
// Needs some 8 bytes times 2 k a row.
Calibration calibrate(const Dictionary& dictionary, const Normalization& normalization,
                      const ShardIndex& data, int64_t rows);

}  // namespace megadict
