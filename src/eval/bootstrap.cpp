#include "eval/bootstrap.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/error.h"
#include "base/philox.h"
#include "data/row_reader.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr size_t kScalars = kRowSums + kRowCounts;

// Poisson(1) by inversion.
double weight_of(const Rng& rng, uint32_t unit) {
  double left = rng.uniform(unit), probability = std::exp(-1.0);
  int count = 0;
  while (left >= probability && count < 32) {
    left -= probability;
    probability /= ++count;
  }
  return count;
}

void pack(const RowSums& sums, double* to) {
  to = std::copy(sums.sums.begin(), sums.sums.end(), to);
  to = std::copy(sums.counts.begin(), sums.counts.end(), to);
  to = std::copy(sums.s_d.begin(), sums.s_d.end(), to);
  std::copy(sums.r_d.begin(), sums.r_d.end(), to);
}

// Of sorted values, between neighbours by their distance.
double quantile(const std::vector<double>& sorted, double at) {
  const double place = at * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

MetricInterval interval_of(const Metric& metric, std::vector<double> values, double confidence) {
  std::erase_if(values, [](double value) { return !std::isfinite(value); });
  MetricInterval interval{&metric};
  if (values.size() < 2) return interval;
  std::sort(values.begin(), values.end());
  const auto count = static_cast<double>(values.size());
  double mean = 0, square = 0;
  for (const double value : values) mean += value;
  mean /= count;
  for (const double value : values) square += (value - mean) * (value - mean);
  interval.low = quantile(values, (1 - confidence) / 2);
  interval.high = quantile(values, (1 + confidence) / 2);
  interval.standard_error = std::sqrt(square / (count - 1));
  return interval;
}

}  // namespace

Bootstrap::Bootstrap(const BootstrapOptions& options, const ShardIndex& data, int64_t d,
                     std::vector<double> shift_d)
    : options_(options), data_(data), shift_d_(std::move(shift_d)) {
  const int64_t columns = static_cast<int64_t>(kScalars) + 2 * d;
  sums_rc_ = at::zeros({options.resamples, columns}, at::kDouble);
  l0_rl_ = at::zeros({options.resamples, 1}, at::kDouble);
  if (options.block_rows > 0) return;
  for (const ShardInfo& shard : data.shards())
    if (!shard.has_document)
      fail_agreed(
          ExitCode::bad_data,
          fmt::format("cannot resample documents: '{}' has no column 'document'", shard.path),
          "--eval.resample_block 512 resamples blocks of 512 neighbouring rows instead");
}

std::vector<uint32_t> Bootstrap::units_of(int64_t first_row, int64_t rows) const {
  if (options_.block_rows == 0)
    return read_column(data_, "document", {first_row, first_row + rows});
  std::vector<uint32_t> unit(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i)
    unit[static_cast<size_t>(i)] = static_cast<uint32_t>((first_row + i) / options_.block_rows);
  return unit;
}

void Bootstrap::add_rows(int64_t first_row, int64_t rows, const float* x_bd, const float* x_hat_bd,
                         const int64_t* l0_b, const double* l1_b, const double* l1_plain_b) {
  if (rows == 0) return;
  const auto d = static_cast<int64_t>(shift_d_.size());
  const std::vector<uint32_t> of_row = units_of(first_row, rows);
  std::vector<RowSums> runs;  // of rows of one unit
  std::vector<uint32_t> unit;
  for (int64_t begin = 0, end = 0; begin < rows; begin = end) {
    const uint32_t mine = of_row[static_cast<size_t>(begin)];
    while (end < rows && of_row[static_cast<size_t>(end)] == mine) ++end;
    runs.push_back(sum_rows(x_bd + begin * d, x_hat_bd + begin * d, end - begin, l0_b + begin,
                            l1_b + begin, l1_plain_b + begin, shift_d_));
    unit.push_back(mine);
  }
  units_.insert(unit.begin(), unit.end());
  add_runs(runs, unit);
}

void Bootstrap::add_runs(const std::vector<RowSums>& runs, const std::vector<uint32_t>& unit) {
  const auto count = static_cast<int64_t>(runs.size());
  size_t range = 1;
  for (const RowSums& run : runs) range = std::max(range, run.l0_histogram.size());
  at::Tensor weights = at::empty({options_.resamples, count}, at::kDouble);
  at::Tensor sums = at::empty({count, sums_rc_.size(1)}, at::kDouble);
  at::Tensor l0 = at::zeros({count, static_cast<int64_t>(range)}, at::kDouble);
  for (int64_t i = 0; i < count; ++i) {
    const RowSums& run = runs[static_cast<size_t>(i)];
    pack(run, sums.mutable_data_ptr<double>() + i * sums.size(1));
    std::copy(run.l0_histogram.begin(), run.l0_histogram.end(),
              l0.mutable_data_ptr<double>() + i * l0.size(1));
  }
  for (int64_t r = 0; r < options_.resamples; ++r) {
    const Rng rng{options_.seed, Purpose::bootstrap, static_cast<uint64_t>(r)};
    double* row = weights.mutable_data_ptr<double>() + r * count;
    for (const uint32_t one : unit) *row++ = weight_of(rng, one);
  }
  sums_rc_.addmm_(weights, sums);
  const int64_t missing = l0.size(1) - l0_rl_.size(1);
  if (missing > 0) l0_rl_ = at::constant_pad_nd(l0_rl_, {0, missing});
  l0_rl_.narrow(1, 0, l0.size(1)).addmm_(weights, l0);
}

int64_t Bootstrap::count_units(Communicator& world) const {
  const std::vector<uint32_t> mine(units_.begin(), units_.end());
  auto widest = static_cast<int64_t>(mine.size());
  world.all_reduce(view_of(&widest, 1), ReduceOp::max, "bootstrap units");
  if (widest == 0) return 0;
  // Room that is left holds one that is there anyway; a rank without rows says so by the count.
  std::vector<uint32_t> padded(mine);
  padded.resize(static_cast<size_t>(widest), mine.empty() ? 0 : mine.front());
  std::vector<uint32_t> all(static_cast<size_t>(widest * world.size()));
  const std::vector<uint32_t>& send = padded;
  world.all_gather(view_of(send.data(), widest), view_of(all.data(), widest * world.size()),
                   "bootstrap units");
  const auto has = static_cast<uint8_t>(!mine.empty());
  std::vector<uint8_t> some(static_cast<size_t>(world.size()));
  world.all_gather(view_of(&has, 1), view_of(some.data(), world.size()), "bootstrap units");
  std::set<uint32_t> distinct;
  for (int r = 0; r < world.size(); ++r)
    if (some[static_cast<size_t>(r)] != 0)
      distinct.insert(all.begin() + r * widest, all.begin() + (r + 1) * widest);
  return static_cast<int64_t>(distinct.size());
}

RowSums Bootstrap::resample(int64_t number) const {
  RowSums out;
  const double* from = sums_rc_.const_data_ptr<double>() + number * sums_rc_.size(1);
  for (double& sum : out.sums) sum = *from++;
  for (int64_t& count : out.counts) count = std::llround(*from++);
  out.s_d.assign(from, from + shift_d_.size());
  out.r_d.assign(from + shift_d_.size(), from + 2 * shift_d_.size());
  const double* l0 = l0_rl_.const_data_ptr<double>() + number * l0_rl_.size(1);
  for (int64_t i = 0; i < l0_rl_.size(1); ++i) out.l0_histogram.push_back(std::llround(l0[i]));
  return out;
}

MetricIntervals Bootstrap::intervals(Communicator& world, const MetricTotals& totals) {
  int64_t range = l0_rl_.size(1);
  world.all_reduce(view_of(&range, 1), ReduceOp::max, "bootstrap l0 range");
  l0_rl_ = at::constant_pad_nd(l0_rl_, {0, range - l0_rl_.size(1)}).contiguous();
  world.all_reduce(view_of(l0_rl_), ReduceOp::sum, "bootstrap l0");
  world.all_reduce(view_of(sums_rc_), ReduceOp::sum, "bootstrap sums");
  MetricIntervals out{options_.block_rows > 0 ? "block" : "document",
                      count_units(world),
                      options_.resamples,
                      options_.confidence,
                      {}};
  if (out.units < 2)
    fail_agreed(ExitCode::bad_data,
                fmt::format("cannot resample: all rows are of {} {}", out.units, out.unit),
                "more rows, or smaller blocks with --eval.resample_block");
  std::vector<std::vector<double>> values(all_metrics().size());
  MetricTotals resampled = totals;
  for (int64_t r = 0; r < options_.resamples; ++r) {
    resampled.rows = resample(r);
    for (size_t i = 0; i < values.size(); ++i)
      if (all_metrics()[i].of_rows) values[i].push_back(all_metrics()[i].value(resampled));
  }
  for (size_t i = 0; i < values.size(); ++i)
    if (all_metrics()[i].of_rows)
      out.of.push_back(interval_of(all_metrics()[i], values[i], options_.confidence));
  return out;
}

}  // namespace megadict
