// The sums of all ranks of a mesh; one file, so that the arithmetic links without communication.
#include <algorithm>

#include "comm/communicator.h"
#include "eval/metrics.h"

namespace megadict {
namespace {

// Where the numbers of a RowSums lie, in one order for packing and unpacking.
template <class Sums, class Visit>
void for_each_sum(Sums& sums, Visit&& visit) {
  for (auto& value : sums.sums) visit(value);
  for (auto& value : sums.s_d) visit(value);
  for (auto& value : sums.r_d) visit(value);
}

void reduce_rows(RowSums& rows, Communicator& world) {
  std::vector<double> packed;
  for_each_sum(rows, [&](double value) { packed.push_back(value); });
  world.all_reduce(view_of(packed.data(), static_cast<int64_t>(packed.size())), ReduceOp::sum,
                   "metric sums");
  size_t next = 0;
  for_each_sum(rows, [&](double& value) { value = packed[next++]; });

  auto length = static_cast<int64_t>(rows.l0_histogram.size());
  world.all_reduce(view_of(&length, 1), ReduceOp::max, "metric l0 range");
  rows.l0_histogram.resize(static_cast<size_t>(length));
  std::vector<int64_t> counts(rows.counts.begin(), rows.counts.end());
  counts.insert(counts.end(), rows.l0_histogram.begin(), rows.l0_histogram.end());
  world.all_reduce(view_of(counts.data(), static_cast<int64_t>(counts.size())), ReduceOp::sum,
                   "metric counts");
  std::copy_n(counts.begin(), kRowCounts, rows.counts.begin());
  std::copy(counts.begin() + kRowCounts, counts.end(), rows.l0_histogram.begin());
}

void reduce_tally(LatentTally& tally, Communicator& feature) {
  std::vector<int64_t> counts(tally.counts.begin(), tally.counts.end());
  counts.insert(counts.end(), tally.histogram.begin(), tally.histogram.end());
  feature.all_reduce(view_of(counts.data(), static_cast<int64_t>(counts.size())), ReduceOp::sum,
                     "metric densities");
  std::copy_n(counts.begin(), tally.counts.size(), tally.counts.begin());
  std::copy(counts.end() - kDensityBins, counts.end(), tally.histogram.begin());
}

}  // namespace

void end_batch(MetricSums& sums, Communicator& world) {
  std::vector<double> whole = sums.batch_sums();
  world.all_reduce(view_of(whole.data(), static_cast<int64_t>(whole.size())), ReduceOp::sum,
                   "metric batch");
  sums.end_batch(whole, world.rank() == 0);
}

MetricTotals reduce_metrics(const MetricSums& sums, Communicator& world, Communicator& data,
                            Communicator& feature) {
  MetricTotals totals{sums.d(), sums.n(), sums.row_sums(), {}, 0, 0, 0};
  reduce_rows(totals.rows, world);

  std::vector<int64_t> fired = sums.fired_l();
  data.all_reduce(view_of(fired.data(), static_cast<int64_t>(fired.size())), ReduceOp::sum,
                  "metric fired");
  totals.latents = tally_latents(fired, totals.rows[RowCount::rows]);
  reduce_tally(totals.latents, feature);

  std::array<double, 2> added = {totals.latents.log10_sum, sums.decoder_norm_sum()};
  feature.all_reduce(view_of(added.data(), 2), ReduceOp::sum, "metric latent sums");
  std::array<double, 2> extremes = {-sums.decoder_norm_min(), sums.decoder_norm_max()};
  feature.all_reduce(view_of(extremes.data(), 2), ReduceOp::max, "metric decoder norms");
  totals.latents.log10_sum = added[0];
  totals.decoder_norm_sum = added[1];
  totals.decoder_norm_min = -extremes[0];
  totals.decoder_norm_max = extremes[1];
  return totals;
}

}  // namespace megadict
