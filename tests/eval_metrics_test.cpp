#include "eval/metrics.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "support/metric_rows.h"

namespace megadict {
namespace {

using test::add;
using test::empty_sums;
using test::golden_rows;
using test::in_order;
using test::MetricRows;
using test::peer_value;
using test::report_of;

// Every value but the one that is defined by batches.
void expect_same(const MetricReport& a, const MetricReport& b, double tolerance = 1e-12) {
  for (size_t i = 0; i < a.values.size(); ++i) {
    const auto& [metric, value] = a.values[i];
    if (metric->name == "explained_variance_legacy") continue;
    EXPECT_NEAR(value, b.values[i].value, tolerance * std::max(1.0, std::abs(value)))
        << metric->name;
  }
  EXPECT_EQ(a.density_histogram, b.density_histogram);
}

std::vector<int64_t> sorted_by_sum(const MetricRows& data) {
  std::vector<int64_t> order = in_order(data.rows);
  const auto sum = [&](int64_t t) {
    return std::accumulate(data.x_row(t), data.x_row(t) + data.d, 0.0);
  };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return sum(a) < sum(b); });
  return order;
}

double mean_over_batches(const MetricRows& data, const std::vector<int64_t>& order, int64_t batch) {
  double sum = 0;
  for (int64_t from = 0; from < data.rows; from += batch) {
    MetricSums part = empty_sums(data);
    add(part, data, order, {from, from + batch}, batch);
    sum += finish(totals_of(part))["explained_variance"];
  }
  return sum / static_cast<double>(data.rows / batch);
}

TEST(Metrics, OneReconstructionUnderEachName) {
  const MetricRows data = golden_rows();
  const MetricReport report = report_of(data, in_order(data.rows), data.rows);
  EXPECT_NEAR(report["explained_variance"], .9317, 5e-5);
  EXPECT_NEAR(report["fvu"], .0683, 5e-5);
  EXPECT_NEAR(report["explained_variance_legacy"], .9130, 2e-3);
  EXPECT_NEAR(report["frac_variance_explained"], .9861, 5e-5);
  EXPECT_NEAR(1 - report["nmse_zero"], .9931, 5e-5);
  // The formula with E[x^2] in the mean's place exceeds 1; ours cannot.
  EXPECT_NEAR(peer_value(report, "saebench.explained_variance"), 1.0273, 5e-5);
  // One batch: what peers average over batches is ours.
  EXPECT_NEAR(peer_value(report, "saelens_training.explained_variance"), .9317, 5e-5);
  EXPECT_NEAR(peer_value(report, "sparsify.fvu"), report["fvu"], 1e-12);
  EXPECT_NEAR(peer_value(report, "dictionary_learning.frac_variance_explained"),
              report["frac_variance_explained"], 1e-12);
}

TEST(Metrics, PeersAverageOverBatches) {
  const MetricRows data = golden_rows();
  const MetricReport shuffled = report_of(data, in_order(data.rows), 16);
  const MetricReport sorted = report_of(data, sorted_by_sum(data), 16);
  EXPECT_NEAR(peer_value(shuffled, "saelens_training.explained_variance"), .9263, 1e-3);
  EXPECT_NEAR(peer_value(sorted, "saelens_training.explained_variance"), .9147, 4e-3);
  EXPECT_NEAR(peer_value(shuffled, "sparsify.fvu"),
              1 - mean_over_batches(data, in_order(data.rows), 16), 1e-12);
  EXPECT_NEAR(shuffled["explained_variance"], .9317, 5e-5);
}

TEST(Metrics, MeansOfBatchRatiosAreSomethingElse) {
  const MetricRows data = golden_rows();
  const double shuffled = mean_over_batches(data, in_order(data.rows), 16);
  const double sorted = mean_over_batches(data, sorted_by_sum(data), 16);
  EXPECT_NEAR(shuffled, .9263, 1e-3);
  EXPECT_NEAR(sorted, .9147, 4e-3);
  EXPECT_LT(sorted, shuffled - .004);
}

TEST(Metrics, BatchesAndOrderDoNotShow) {
  const MetricRows data = golden_rows();
  const MetricReport whole = report_of(data, in_order(data.rows), data.rows);
  for (int64_t batch : {1, 7, 4096})
    for (const auto& order : {in_order(data.rows), sorted_by_sum(data)})
      expect_same(whole, report_of(data, order, batch));
}

TEST(Metrics, MergedPartsEqualTheWhole) {
  const MetricRows data = golden_rows();
  const std::vector<int64_t> order = sorted_by_sum(data);
  const MetricReport whole = report_of(data, order, data.rows);
  for (int64_t parts = 1; parts <= 6; ++parts) {
    MetricSums sums = empty_sums(data);
    sums.set_decoder_norms(std::vector<double>(static_cast<size_t>(data.n), 1.0));
    for (int64_t i = 0; i < parts; ++i) {
      MetricSums part = empty_sums(data);
      add(part, data, order, shard_of(data.rows, parts, i), 7);
      sums.merge(part);
    }
    expect_same(whole, finish(totals_of(sums)));
  }
}

TEST(Metrics, SmallCaseByHand) {
  // x = (3,4) (0,2); x_hat = (3,0) (0,0): r = (0,4) (0,2); mean x = (1.5,3).
  const std::vector<float> x = {3, 4, 0, 2}, x_hat = {3, 0, 0, 0};
  const std::vector<int64_t> l0 = {2, 0}, fired = {1, 0, 1};
  const std::vector<double> l1 = {1.5, 0}, norms = {1, 2, 3};
  MetricSums sums(2, 3, {0, 3});
  const std::vector<double> plain = {1, .5};
  sums.add_rows(x.data(), x_hat.data(), 2, l0.data(), l1.data(), plain.data());
  sums.end_batch();
  sums.add_fired(fired);
  sums.set_decoder_norms(norms);
  const MetricReport report = finish(totals_of(sums));
  EXPECT_DOUBLE_EQ(report["rows"], 2);
  EXPECT_DOUBLE_EQ(report["fvu"], 20 / 6.5);
  EXPECT_DOUBLE_EQ(report["explained_variance"], 1 - 20 / 6.5);
  EXPECT_DOUBLE_EQ(report["explained_variance_legacy"], (1 - 16 / 3.25 + 1 - 4 / 3.25) / 2);
  EXPECT_DOUBLE_EQ(report["frac_variance_explained"], 1 - 2 / 6.5);
  EXPECT_DOUBLE_EQ(report["nmse_zero"], 20.0 / 29);
  EXPECT_DOUBLE_EQ(report["nmse_per_example"], (16.0 / 25 + 1) / 2);
  EXPECT_DOUBLE_EQ(report["mse"], 10);
  EXPECT_DOUBLE_EQ(report["cossim"], .6 / 2);
  EXPECT_DOUBLE_EQ(report["l2_ratio"], .6 / 2);
  EXPECT_DOUBLE_EQ(report["relative_reconstruction_bias"], 1);
  EXPECT_DOUBLE_EQ(report["l0"], 1);
  EXPECT_DOUBLE_EQ(report["l0_p5"], 0);
  EXPECT_DOUBLE_EQ(report["l0_p50"], 0);
  EXPECT_DOUBLE_EQ(report["l0_p95"], 2);
  EXPECT_DOUBLE_EQ(report["l1"], .75);
  EXPECT_DOUBLE_EQ(report["frac_alive"], 2.0 / 3);
  EXPECT_DOUBLE_EQ(report["dead_pct"], 100.0 / 3);
  EXPECT_DOUBLE_EQ(report["decoder_norm_min"], 1);
  EXPECT_DOUBLE_EQ(report["decoder_norm_mean"], 2);
  EXPECT_DOUBLE_EQ(report["decoder_norm_max"], 3);
  // m = 29 / 4, so d m - m^2 is negative here.
  EXPECT_DOUBLE_EQ(peer_value(report, "saebench.explained_variance"),
                   1 - 10 / (2 * 7.25 - 7.25 * 7.25));
  EXPECT_DOUBLE_EQ(peer_value(report, "saebench.mse"), 5);
  EXPECT_DOUBLE_EQ(peer_value(report, "dictionary_learning.l2_loss"), 3);
  EXPECT_DOUBLE_EQ(peer_value(report, "openai.normalized_mean_squared_error"), (16.0 / 25 + 1) / 2);
  EXPECT_TRUE(std::isnan(peer_value(report, "saelens.cossim")));  // one x_hat is 0
  EXPECT_DOUBLE_EQ(peer_value(report, "saelens.l2_ratio"), .6 / 2);
  EXPECT_DOUBLE_EQ(peer_value(report, "saelens.l1"), .75);
  EXPECT_DOUBLE_EQ(peer_value(report, "dictionary_learning.relative_reconstruction_bias"), 1);
}

TEST(Metrics, ScaleOfTheDataDoesNotChangeRatiosOrFiring) {
  MetricRows data = golden_rows();
  const MetricReport before = report_of(data, in_order(data.rows), 100);
  for (auto* values : {&data.x, &data.x_hat})
    for (float& value : *values) value *= 0x1p-13f;
  for (double& value : data.z) value *= 0x1p-13;
  const MetricReport after = report_of(data, in_order(data.rows), 100);
  for (const char* name :
       {"fvu", "frac_variance_explained", "nmse_zero", "nmse_per_example", "cossim", "l2_ratio",
        "relative_reconstruction_bias", "l0", "dead_pct", "mean_log10_density"})
    EXPECT_NEAR(before[name], after[name], 1e-12) << name;
}

TEST(Metrics, SelectedAtZeroHasNotFired) {
  MetricRows data = golden_rows();
  std::fill(data.z.begin(), data.z.end(), 0.0);
  const MetricReport report = report_of(data, in_order(data.rows), 100);
  EXPECT_EQ(report["dead_pct"], 100);
  EXPECT_EQ(report["frac_alive"], 0);
  EXPECT_EQ(report["l0"], 0);
  EXPECT_EQ(report["l0_p95"], 0);
  EXPECT_EQ(report.density_histogram[0], data.n);
}

TEST(Metrics, DensityDividesByTheRowsThatWere) {
  // 10 rows in batches of 4, 4, 2; latent 0 fires always, 1 once, 2 never.
  MetricSums sums(1, 3, {0, 3});
  const std::vector<float> x(4, 1.0f);
  const std::vector<int64_t> l0(4, 1);
  const std::vector<double> l1(4, 1.0);
  for (int64_t rows : {4, 4, 2}) {
    sums.add_rows(x.data(), x.data(), rows, l0.data(), l1.data());
    sums.add_fired(std::vector<int64_t>{rows, rows == 2 ? 1 : 0, 0});
  }
  const MetricReport report = finish(totals_of(sums));
  EXPECT_NEAR(report["mean_log10_density"], (0.0 - 1.0 - 10.0) / 3, 1e-8);
  EXPECT_EQ(report["density_below_1e-5"], 1);
  EXPECT_EQ(report["density_above_1e-2"], 2);
  EXPECT_EQ(report["density_above_1e-1"], 1);  // strictly above
  EXPECT_EQ(report.density_histogram[0], 1);
  EXPECT_EQ(report.density_histogram[36], 1);  // log10(.1 + 1e-10) is just above -1
  EXPECT_EQ(report.density_histogram[39], 1);
}

TEST(Metrics, L0PercentilesAreExact) {
  MetricSums sums(1, 100, {0, 100});
  for (int64_t i = 100; i >= 1; --i) {
    const float x = 1;
    const double l1 = 0;
    sums.add_rows(&x, &x, 1, &i, &l1);
  }
  const MetricReport report = finish(totals_of(sums));
  EXPECT_EQ(report["l0_p5"], 5);
  EXPECT_EQ(report["l0_p50"], 50);
  EXPECT_EQ(report["l0_p95"], 95);
  EXPECT_EQ(report["l0"], 50.5);
}

TEST(Metrics, AFarMeanDoesNotCancelTheVariance) {
  MetricRows data = golden_rows();
  const double before = report_of(data, in_order(data.rows), 64)["fvu"];
  for (size_t i = 0; i < data.x.size(); ++i) {
    data.x[i] = std::round(data.x[i] * 4096) / 4096 + 2048;
    data.x_hat[i] = std::round(data.x_hat[i] * 4096) / 4096 + 2048;
  }
  EXPECT_NEAR(report_of(data, in_order(data.rows), 64)["fvu"], before, 1e-4 * before);
}

TEST(Metrics, UndefinedIsNull) {
  const MetricSums nothing(4, 2, {0, 2});
  const nlohmann::ordered_json json = metrics_json(finish(totals_of(nothing)));
  EXPECT_EQ(json["rows"], 0);
  for (const char* name : {"fvu", "l0", "l0_p50", "dead_pct", "cossim", "decoder_norm_min"})
    EXPECT_TRUE(json[name].is_null()) << name;

  MetricSums constant(2, 2, {0, 2}, {0.1f, 0.3f});
  const std::vector<float> x = {.7f, .9f, .7f, .9f}, zero(4, 0.0f);
  const std::vector<int64_t> l0(2, 0);
  const std::vector<double> l1(2, 0);
  constant.add_rows(x.data(), zero.data(), 2, l0.data(), l1.data());
  constant.end_batch();
  const MetricReport report = finish(totals_of(constant));
  EXPECT_TRUE(std::isnan(report["fvu"]));
  EXPECT_TRUE(std::isnan(report["explained_variance_legacy"]));
  EXPECT_TRUE(std::isnan(report["relative_reconstruction_bias"]));
  EXPECT_EQ(report["cossim"], 0);
  EXPECT_EQ(report["nmse_zero"], 1);
}

TEST(Metrics, ReportsHoldEveryNameOnce) {
  const MetricRows data = golden_rows();
  const MetricReport report = report_of(data, in_order(data.rows), 64);
  const nlohmann::ordered_json json = metrics_json(report);
  const std::string text = metrics_text(report);
  EXPECT_EQ(json.size(), all_metrics().size() + 2);
  EXPECT_EQ(json["peers"].size(), peer_metrics().size());
  for (const Metric& metric : all_metrics()) {
    EXPECT_TRUE(json.contains(std::string(metric.name)));
    EXPECT_NE(text.find(std::string(metric.name) + " "), std::string::npos) << metric.name;
  }
  EXPECT_EQ(json["rows"], 4000);
  EXPECT_EQ(json["feature_density"]["counts"].size(), size_t{kDensityBins});
  EXPECT_THROW(report["no_such"], Error);
}

TEST(Metrics, AReportIsCutDown) {
  const MetricRows data = golden_rows();
  MetricReport report = report_of(data, in_order(data.rows), 64);
  keep_only(report, {"mse", "l0"});
  const nlohmann::ordered_json json = metrics_json(report);
  EXPECT_EQ(json.size(), 3U);
  EXPECT_EQ(json["peers"].size(), 2U);
  EXPECT_EQ(metrics_text(report).find("density"), std::string::npos);
}

TEST(Metrics, WrongShapesAreRefused) {
  EXPECT_THROW(MetricSums(4, 2, {0, 2}, {1.0f}), Error);
  MetricSums sums(1, 2, {0, 2});
  EXPECT_THROW(sums.add_fired(std::vector<int64_t>(3)), Error);
  EXPECT_THROW(sums.merge(MetricSums(1, 2, {0, 1})), Error);
  EXPECT_THROW(totals_of(MetricSums(1, 2, {0, 1})), Error);
}

}  // namespace
}  // namespace megadict
