// Confidence intervals of the metrics that follow from sums over rows: the Poisson bootstrap
// (Hanley and MacGibbon 2006) over documents, whose rows are not independent of one another. A
// resample counts each document Poisson(1) times, a number that depends on (seed, resample,
// document) alone, so that no document has to be whole on a rank and every mesh resamples alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <set>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "data/shard_index.h"
#include "eval/metrics.h"

namespace megadict {

struct BootstrapOptions {
  int64_t resamples = 0;   // 0 = none
  int64_t block_rows = 0;  // resample blocks of so many rows; 0 = documents
  double confidence = 0.95;
  uint64_t seed = 0;
};

class Bootstrap {
 public:
  // Exit 3 where documents are to be resampled and a shard does not say which rows are of which.
  Bootstrap(const BootstrapOptions& options, const ShardIndex& data, int64_t d,
            std::vector<double> shift_d);

  // Rows first_row, ... of the data set, otherwise as MetricSums::add_rows() takes them.
  void add_rows(int64_t first_row, int64_t rows, const float* x_bd, const float* x_hat_bd,
                const int64_t* l0_b, const double* l1_b, const double* l1_plain_b);
  // Of every metric of rows; `totals` are those of all rows. Exit 3 where the rows are of fewer
  // than two documents or blocks. Collective over world.
  MetricIntervals intervals(Communicator& world, const MetricTotals& totals);

 private:
  std::vector<uint32_t> units_of(int64_t first_row, int64_t rows) const;
  void add_runs(const std::vector<RowSums>& runs, const std::vector<uint32_t>& unit);
  int64_t count_units(Communicator& world) const;
  RowSums resample(int64_t number) const;

  BootstrapOptions options_;
  const ShardIndex& data_;
  std::vector<double> shift_d_;
  at::Tensor sums_rc_;  // fp64 [resamples, sums and counts]
  at::Tensor l0_rl_;    // fp64 [resamples, 1 + the largest l0 so far]
  std::set<uint32_t> units_;
};

}  // namespace megadict
