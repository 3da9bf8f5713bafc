// The norm filter: rows far above the median norm (attention sinks, first tokens) are left out of
// training (`data.max_norm_multiple`). The surviving rows are known before step 0 and belong to the
// identity of the data, so the batch plan stays a pure function.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/shard_index.h"

namespace megadict {

struct NormFilter {
  double median = 0;               // of all rows: the lower of the two middle ones
  std::vector<int64_t> survivors;  // sorted global rows; empty = all rows survive
  int64_t dropped = 0;
};

// `norms`: of all rows in order (row_norms, or gathered from ranks that scanned a part each).
NormFilter filter_by_norm(const std::vector<float>& norms, double max_multiple);
// The same with one scan of its own; max_multiple 0 = off, nothing is read.
NormFilter filter_by_norm(const ShardIndex& index, double max_multiple);

// ShardIndex::fingerprint(), continued over the survivors where rows were dropped.
std::string fingerprint_of(const ShardIndex& index, const std::vector<int64_t>& survivors);

}  // namespace megadict
