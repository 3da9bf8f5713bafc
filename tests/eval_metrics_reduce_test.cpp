// The same report on every mesh: rows spread over all ranks, latents over the feature axis.
#include <gtest/gtest.h>

#include "comm/mesh.h"
#include "eval/metrics.h"
#include "support/metric_rows.h"
#include "support/mpi_main.h"

namespace megadict {
namespace {

using test::add;
using test::golden_rows;
using test::in_order;
using test::MetricRows;
using test::report_of;

std::vector<double> norms_of(Range latents) {
  std::vector<double> norms;
  for (int64_t j = latents.begin; j < latents.end; ++j)
    norms.push_back(1 + static_cast<double>(j % 5));
  return norms;
}

MetricReport on_mesh(const MetricRows& data, const Mesh& mesh) {
  const Range group = shard_of(data.rows, mesh.data_size(), mesh.data_index);
  const Range mine = shard_of(group.size(), mesh.feature_size(), mesh.feature_index);
  const Range latents = shard_of(data.n, mesh.feature_size(), mesh.feature_index);
  const auto shift = mean_row(data.x.data(), 64, data.d);
  // Rows are this rank's share of its data row's; fire counts are over the whole data row.
  MetricSums counts(data.d, data.n, latents, shift), sums(data.d, data.n, latents, shift);
  add(counts, data, in_order(data.rows), group, 100);
  for (int64_t t = group.begin + mine.begin; t < group.begin + mine.end; ++t) {
    const double* z = data.z.data() + t * data.n;
    const int64_t l0 = std::count_if(z, z + data.n, [](double v) { return v > 0; });
    const double l1 = std::accumulate(z, z + data.n, 0.0);
    sums.add_rows(data.x_row(t), data.x_hat_row(t), 1, &l0, &l1);
  }
  sums.add_fired(counts.fired_l());
  sums.set_decoder_norms(norms_of(latents));
  return finish(reduce_metrics(sums, *mesh.world, *mesh.data, *mesh.feature));
}

TEST(MetricsReduce, EveryMeshGivesTheReportOfOneProcess) {
  const MetricRows data = golden_rows();
  MetricSums alone = test::empty_sums(data);
  add(alone, data, in_order(data.rows), {0, data.rows}, 100);
  alone.set_decoder_norms(norms_of({0, data.n}));
  const MetricReport expected = finish(totals_of(alone));
  Communicator& world = test_world();
  for (int features = 1; features <= world.size(); ++features) {
    if (world.size() % features != 0) continue;
    const Mesh mesh = make_mesh(world, {world.size() / features, features});
    const MetricReport report = on_mesh(data, mesh);
    for (size_t i = 0; i < report.values.size(); ++i) {
      const auto& [metric, value] = report.values[i];
      if (metric->name == "explained_variance_legacy") continue;
      EXPECT_NEAR(value, expected.values[i].value, 1e-12 * std::max(1.0, std::abs(value)))
          << metric->name << " on " << mesh.name();
    }
    EXPECT_EQ(report.density_histogram, expected.density_histogram);
  }
}

}  // namespace
}  // namespace megadict
