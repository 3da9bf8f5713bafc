// The metrics by name, and how a report is printed.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "eval/metrics.h"

namespace megadict {
namespace {

using Totals = MetricTotals;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double ratio(double above, double below) {
  return below > 0 ? above / below : kNan;
}

double finite(double value) {
  return std::isfinite(value) ? value : kNan;
}

double rows_of(const Totals& t) {
  return static_cast<double>(t.rows[RowCount::rows]);
}

template <RowSum sum>
double row_mean(const Totals& t) {
  return ratio(t.rows[sum], rows_of(t));
}

template <RowSum sum>
double nonzero_row_mean(const Totals& t) {
  return ratio(t.rows[sum], static_cast<double>(t.rows[RowCount::rows_nonzero]));
}

double x_scatter(const Totals& t) {
  return scatter(t.rows[RowSum::s_sq], t.rows.s_d, rows_of(t));
}

double fvu(const Totals& t) {
  return ratio(t.rows[RowSum::r_sq], x_scatter(t));
}

double explained_variance(const Totals& t) {
  return 1 - fvu(t);
}

double legacy(const Totals& t) {
  return ratio(t.rows[RowSum::legacy], static_cast<double>(t.rows[RowCount::rows_legacy]));
}

double frac_variance_explained(const Totals& t) {
  return 1 - ratio(scatter(t.rows[RowSum::r_sq], t.rows.r_d, rows_of(t)), x_scatter(t));
}

double nmse_zero(const Totals& t) {
  return ratio(t.rows[RowSum::r_sq], t.rows[RowSum::x_sq]);
}

double shrinkage(const Totals& t) {
  return finite(t.rows[RowSum::x_hat_sq] / t.rows[RowSum::x_dot_x_hat]);
}

double l0_mean(const Totals& t) {
  double sum = 0;
  for (size_t i = 0; i < t.rows.l0_histogram.size(); ++i)
    sum += static_cast<double>(i) * static_cast<double>(t.rows.l0_histogram[i]);
  return ratio(sum, rows_of(t));
}

// The smallest count that at least `percent` % of the rows do not exceed (nearest rank).
template <int64_t percent>
double l0_percentile(const Totals& t) {
  const int64_t rank = std::max<int64_t>(1, ceil_div(percent * t.rows[RowCount::rows], 100));
  int64_t seen = 0;
  for (size_t i = 0; i < t.rows.l0_histogram.size(); ++i) {
    seen += t.rows.l0_histogram[i];
    if (seen >= rank) return static_cast<double>(i);
  }
  return kNan;
}

template <RowSum sum>
double batch_mean(const Totals& t) {
  return ratio(t.rows[sum], static_cast<double>(t.rows[RowCount::batches]));
}

double batch_explained_variance(const Totals& t) {
  return 1 - batch_mean<RowSum::batch_fvu>(t);
}

double batch_bias(const Totals& t) {
  return ratio(t.rows[RowSum::batch_bias], static_cast<double>(t.rows[RowCount::batches_bias]));
}

// 1 - mean |r|^2 / (d m - m^2), m the mean of x^2 over all entries, in the mean's place.
double saebench_explained_variance(const Totals& t) {
  const auto width = static_cast<double>(t.d);
  const double m = row_mean<RowSum::x_sq>(t) / width;
  return finite(1 - row_mean<RowSum::r_sq>(t) / (width * m - m * m));
}

double mse_by_rows(const Totals& t) {
  return ratio(row_mean<RowSum::r_sq>(t), rows_of(t));
}

double cossim_of_peers(const Totals& t) {
  const bool blank =
      t.rows[RowCount::rows_blank] > 0 || t.rows[RowCount::rows_nonzero] < t.rows[RowCount::rows];
  return blank ? kNan : row_mean<RowSum::cosine>(t);
}

template <LatentCount count>
double latents(const Totals& t) {
  return t.rows[RowCount::rows] > 0 ? static_cast<double>(t.latents[count]) : kNan;
}

double frac_alive(const Totals& t) {
  return ratio(latents<LatentCount::alive>(t), static_cast<double>(t.n));
}

double dead_pct(const Totals& t) {
  return 100 * (1 - frac_alive(t));
}

double mean_log10_density(const Totals& t) {
  return t.rows[RowCount::rows] > 0 ? ratio(t.latents.log10_sum, static_cast<double>(t.n)) : kNan;
}

double decoder_norm_min(const Totals& t) {
  return finite(t.decoder_norm_min);
}
double decoder_norm_max(const Totals& t) {
  return finite(t.decoder_norm_max);
}
double decoder_norm_mean(const Totals& t) {
  return std::isfinite(t.decoder_norm_min) ? ratio(t.decoder_norm_sum, static_cast<double>(t.n))
                                           : kNan;
}

constexpr Metric kMetrics[] = {
    {"rows", "rows", "N, the rows evaluated; a density below 1/N means nothing", rows_of},
    {"fvu", "share", "sum |x - x_hat|^2 / sum |x - mean x|^2, one mean over all rows", fvu, true},
    {"explained_variance", "share", "1 - fvu", explained_variance, true},
    {"explained_variance_legacy", "share",
     "mean of 1 - |x - x_hat|^2 / |x - batch mean|^2 by batches of fixed rows; for comparison only",
     legacy},
    {"frac_variance_explained", "share", "1 - Var(x - x_hat) / Var(x); blind to a constant error",
     frac_variance_explained, true},
    {"nmse_zero", "share", "sum |x - x_hat|^2 / sum |x|^2; flatters data with a large mean",
     nmse_zero, true},
    {"nmse_per_example", "share", "mean of |x - x_hat|^2 / |x|^2 over rows with x != 0",
     nonzero_row_mean<RowSum::nmse_per_example>, true},
    {"mse", "norm^2", "mean of |x - x_hat|^2, summed over coordinates", row_mean<RowSum::r_sq>,
     true},
    {"cossim", "cosine", "mean of cos(x, x_hat), 0 where x_hat = 0", row_mean<RowSum::cosine>,
     true},
    {"l2_ratio", "ratio", "mean of |x_hat| / |x| over rows with x != 0",
     nonzero_row_mean<RowSum::norm_ratio>, true},
    {"relative_reconstruction_bias", "ratio", "sum |x_hat|^2 / sum x.x_hat; below 1 is shrinkage",
     shrinkage, true},
    {"l0", "latents", "mean number of latents with z > 0 in a row", l0_mean, true},
    {"l0_p5", "latents", "5 % of the rows have at most this many", l0_percentile<5>, true},
    {"l0_p50", "latents", "half of the rows have at most this many", l0_percentile<50>, true},
    {"l0_p95", "latents", "95 % of the rows have at most this many", l0_percentile<95>, true},
    {"l1", "norm", "mean of sum_j |z_j| |w_dec_j|", row_mean<RowSum::l1>, true},
    {"frac_alive", "share", "latents that fired in one of the N rows or more", frac_alive},
    {"dead_pct", "%", "latents that fired in none of the N rows", dead_pct},
    {"mean_log10_density", "log10", "mean of log10(f + 1e-10), f = a latent's share of rows fired",
     mean_log10_density},
    {"density_below_1e-5", "latents", "latents with f < 1e-5", latents<LatentCount::below_1e5>},
    {"density_below_1e-6", "latents", "latents with f < 1e-6", latents<LatentCount::below_1e6>},
    {"density_below_1e-7", "latents", "latents with f < 1e-7", latents<LatentCount::below_1e7>},
    {"density_above_1e-2", "latents", "latents with f > 1e-2", latents<LatentCount::above_1e2>},
    {"density_above_1e-1", "latents", "latents with f > 1e-1", latents<LatentCount::above_1e1>},
    {"decoder_norm_min", "norm", "smallest norm of a decoder row", decoder_norm_min},
    {"decoder_norm_mean", "norm", "mean norm of the decoder rows", decoder_norm_mean},
    {"decoder_norm_max", "norm", "largest norm of a decoder row", decoder_norm_max},
};

// Batches are those of EvaluateArgs::peer_batch_rows, cut at fixed rows.
constexpr PeerMetric kPeerMetrics[] = {
    {"fvu", "sparsify.fvu", "mean over batches of the batch's fvu", batch_mean<RowSum::batch_fvu>},
    {"explained_variance", "saelens_training.explained_variance",
     "mean over batches of 1 - the batch's fvu; OpenMOSS too", batch_explained_variance},
    {"explained_variance", "saebench.explained_variance",
     "1 - mean |r|^2 / (d m - m^2), m = mean x_i^2; can exceed 1; SAELens to 6.18 too",
     saebench_explained_variance},
    {"frac_variance_explained", "dictionary_learning.frac_variance_explained",
     "mean over batches of the batch's own", batch_mean<RowSum::batch_fve>},
    {"nmse_per_example", "openai.normalized_mean_squared_error", "the same number",
     nonzero_row_mean<RowSum::nmse_per_example>},
    {"mse", "saebench.mse", "divided by N once more; SAELens to 6.18 too", mse_by_rows},
    {"mse", "dictionary_learning.l2_loss", "mean of |x - x_hat|, not squared",
     row_mean<RowSum::r_norm>},
    {"cossim", "saelens.cossim",
     "not a number as soon as one x or x_hat is 0; dictionary_learning too", cossim_of_peers},
    {"l2_ratio", "saelens.l2_ratio", "over all rows, |x| below 1e-4 taken for 1",
     row_mean<RowSum::norm_ratio_at_one>},
    {"relative_reconstruction_bias", "dictionary_learning.relative_reconstruction_bias",
     "mean over batches of the batch's own; SAELens too", batch_bias},
    {"l1", "saelens.l1", "mean of sum_j |z_j|, whatever the norms of the decoder's rows",
     row_mean<RowSum::l1_plain>},
};

constexpr std::string_view kDensityName = "feature_density";

bool is_count(const Metric& metric) {
  return metric.name == "rows" || metric.name.starts_with("density_");
}

}  // namespace

std::span<const Metric> all_metrics() {
  return kMetrics;
}

std::span<const PeerMetric> peer_metrics() {
  return kPeerMetrics;
}

std::vector<std::string> report_names() {
  std::vector<std::string> names;
  for (const Metric& metric : kMetrics) names.emplace_back(metric.name);
  names.emplace_back(kDensityName);
  return names;
}

void keep_only(MetricReport& report, const std::vector<std::string>& names) {
  const auto unwanted = [&](std::string_view name) {
    return std::find(names.begin(), names.end(), name) == names.end();
  };
  std::erase_if(report.values, [&](const auto& row) { return unwanted(row.metric->name); });
  std::erase_if(report.peers, [&](const auto& row) { return unwanted(row.metric->metric); });
  std::erase_if(report.intervals.of, [&](const auto& row) { return unwanted(row.metric->name); });
  report.with_density = !unwanted(kDensityName);
}

double MetricReport::operator[](std::string_view name) const {
  for (const MetricValue& row : values)
    if (row.metric->name == name) return row.value;
  fail(ExitCode::error, fmt::format("there is no metric '{}'", name));
}

MetricReport finish(const MetricTotals& totals) {
  MetricReport report;
  for (const Metric& metric : kMetrics) report.values.push_back({&metric, metric.value(totals)});
  for (const PeerMetric& metric : kPeerMetrics)
    report.peers.push_back({&metric, metric.value(totals)});
  report.density_histogram = totals.latents.histogram;
  return report;
}

namespace {

nlohmann::ordered_json finite_or_null(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

nlohmann::ordered_json intervals_json(const MetricIntervals& intervals) {
  nlohmann::ordered_json json = {{"unit", intervals.unit},
                                 {"units", intervals.units},
                                 {"resamples", intervals.resamples},
                                 {"confidence", intervals.confidence},
                                 {"intervals", nlohmann::ordered_json::object()}};
  for (const auto& [metric, low, high, standard_error] : intervals.of)
    json["intervals"][std::string(metric->name)] = {
        {"low", finite_or_null(low)},
        {"high", finite_or_null(high)},
        {"standard_error", finite_or_null(standard_error)}};
  return json;
}

}  // namespace

nlohmann::ordered_json metrics_json(const MetricReport& report) {
  nlohmann::ordered_json json;
  for (const auto& [metric, value] : report.values) {
    auto& slot = json[std::string(metric->name)];  // null
    if (!std::isfinite(value)) continue;
    if (is_count(*metric)) {
      slot = static_cast<int64_t>(value);
    } else {
      slot = value;
    }
  }
  for (const auto& [metric, value] : report.peers)
    json["peers"][std::string(metric->name)] = finite_or_null(value);
  if (!report.intervals.unit.empty()) json["bootstrap"] = intervals_json(report.intervals);
  if (!report.with_density) return json;
  json[std::string(kDensityName)] = {{"log10_from", kDensityLog10From},
                                     {"width", kDensityBinWidth},
                                     {"counts", report.density_histogram}};
  return json;
}

namespace {

std::string metric_line(std::string_view name, const std::string& number, std::string_view unit,
                        std::string_view definition) {
  return fmt::format("{:<28} {:>12} {:<8} {}\n", name, number, unit, definition);
}

std::string number_text(double value) {
  return std::isfinite(value) ? fmt::format("{:.6g}", value) : "-";
}

std::string intervals_text(const MetricIntervals& intervals) {
  if (intervals.of.empty()) return "";
  std::string text =
      fmt::format("{:g} % intervals, {} resamples of {} {}s:\n", 100 * intervals.confidence,
                  intervals.resamples, intervals.units, intervals.unit);
  for (const auto& [metric, low, high, standard_error] : intervals.of)
    text += fmt::format("  {:<28} {:>12} to {:>12}  standard error {}\n", metric->name,
                        number_text(low), number_text(high), number_text(standard_error));
  return text;
}

std::string density_text(const MetricReport& report) {
  std::string text = "latents by log10 density:\n";
  for (int i = 0; i < kDensityBins; ++i) {
    const int64_t count = report.density_histogram[static_cast<size_t>(i)];
    const double from = kDensityLog10From + kDensityBinWidth * i;
    if (count > 0)
      text += fmt::format("  {:>6.2f} to {:>6.2f} {:>10}\n", from, from + kDensityBinWidth, count);
  }
  return text;
}

}  // namespace

std::string metrics_text(const MetricReport& report) {
  std::string text;
  for (const auto& [metric, value] : report.values) {
    const bool whole = is_count(*metric) && std::isfinite(value);
    text += metric_line(metric->name, whole ? fmt::format("{:.0f}", value) : number_text(value),
                        metric->unit, metric->definition);
    for (const auto& [peer, number] : report.peers)
      if (peer->metric == metric->name)
        text += fmt::format("  {}: {}  ({})\n", peer->name, number_text(number), peer->definition);
  }
  text += intervals_text(report.intervals);
  return report.with_density ? text + density_text(report) : text;
}

}  // namespace megadict
