// The batch plan: which global rows make up micro-batch m of step t. A pure function of
// (data set, seed, t, m), the same for every mesh:
// epoch e permutes the chunks by Philox(seed, chunk_order, e); a window is `shuffle_buffer` rows of
// consecutive permuted chunks, its rows ordered by Philox(seed, row_order, e, global row); the
// windows of an epoch, one after the other, are cut into batches and these into micro-batches;
// inside a micro-batch the rows are sorted by (position of their chunk, row), so that a contiguous
// part of it reads few chunks.
//
// Finer points. A window takes whole chunks until it has `shuffle_buffer` rows that take part (the
// last window of an epoch has what is left). With last_batch = drop an epoch ends with its last
// whole batch; with keep its last batch holds the rest. The run has as many steps as fit whole into
// `tokens` rows (0 = one epoch), at least one. micro_batch_size need not divide batch_size: the
// last micro-batch of a step is short.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/range.h"
#include "data/config.h"
#include "data/shard_index.h"

namespace megadict {

// A shuffling window of the run; ordered as the run meets them.
struct WindowId {
  int64_t epoch = 0;
  int64_t window = 0;  // of the epoch
  auto operator<=>(const WindowId&) const = default;
};

// A value: copies share one immutable description and a small cache. May be used by several
// threads.
class BatchPlan {
 public:
  // `survivors`: sorted global rows that take part; empty = all rows (norm filter).
  // Exit 2 for sizes that are not positive, an unknown last_batch, and (drop) a batch larger than
  // the data set.
  BatchPlan(const ShardIndex& index, const DataConfig& config, uint64_t seed,
            std::vector<int64_t> survivors = {});

  int64_t steps() const;                  // optimiser steps of the whole run
  int64_t rows_per_epoch() const;         // rows used (after dropping, where asked)
  int64_t tokens_at(int64_t step) const;  // rows consumed by steps [0, step)
  int64_t micro_batches(int64_t step) const;
  int64_t batch_rows(int64_t step) const;  // global rows of that step's batch
  // Global row ids of one micro-batch, in order.
  std::vector<int64_t> rows(int64_t step, int64_t micro) const;
  // The plan's first `count` rows (or all), the sample for initialisation and statistics: rows of
  // epoch 0 in shuffled order, independent of the batch size.
  std::vector<int64_t> sample(int64_t count) const;

  // For reading ahead: the first and last window a micro-batch draws from, the window after
  // another, and the chunks of a window (indices of ShardIndex::chunks()) by position.
  std::pair<WindowId, WindowId> windows(int64_t step, int64_t micro) const;
  WindowId next(WindowId window) const;
  std::vector<int32_t> window_chunks(WindowId window) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
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
