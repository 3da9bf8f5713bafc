// The batch plan: which global rows make up micro-batch m of step t. A pure function of
// (data set, seed, t, m), the same for every mesh (DESIGN section 8, "Batch plan"):
// epoch e permutes the chunks by Philox(seed, chunk_order, e); a window is `shuffle_buffer` rows of
// consecutive permuted chunks, its rows ordered by Philox(seed, row_order, e, global row); the
// windows of an epoch, one after the other, are cut into batches; inside a batch the rows are
// sorted by (position of their chunk, row), so that a contiguous part of a batch reads few chunks.
#pragma once

#include <cstdint>
#include <vector>

#include "base/range.h"
#include "data/config.h"
#include "data/shard_index.h"

namespace megadict {

class BatchPlan {
 public:
  // `survivors`: sorted global rows that take part; empty = all rows (norm filter).
  BatchPlan(const ShardIndex& index, const DataConfig& config, uint64_t seed,
            std::vector<int64_t> survivors = {});

  int64_t steps() const;                  // optimiser steps of the whole run
  int64_t rows_per_epoch() const;         // rows used (after dropping, where asked)
  int64_t tokens_at(int64_t step) const;  // rows consumed by steps [0, step)
  int64_t micro_batches(int64_t step) const;
  int64_t batch_rows(int64_t step) const;  // global rows of that step's batch
  // Global row ids of one micro-batch, in order.
  std::vector<int64_t> rows(int64_t step, int64_t micro) const;
  // The plan's first `count` rows (or all), the sample for initialisation and statistics.
  std::vector<int64_t> sample(int64_t count) const;
};

// What one rank of a D x F mesh handles of a micro-batch with `rows` global rows: its data row has
// shard_of(rows, D, d); every feature member owns `slot` rows of the padded F * slot, where slot =
// ceil(ceil(rows / D) / F), so every rank of the mesh has the same slot. Rows past the real ones
// are padding and masked everywhere.
struct RowPart {
  Range row_range;     // of the micro-batch: the real rows of this data row
  int64_t slot = 0;    // rows per owner, padded
  int64_t padded = 0;  // F * slot
  Range owned;         // real rows this rank owns, relative to row_range.begin
};
RowPart row_part(int64_t rows, int data_size, int feature_size, int data_index, int feature_index);

}  // namespace megadict
