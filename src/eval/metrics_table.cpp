// The metrics by name (formats.md 1.3), and how a report is printed.
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

// sum_t |v_t - mean v|^2 from the sums of squares and of vectors; what is left of a constant after
// rounding counts as nothing.
double scatter(double squares, const std::vector<double>& sum_d, double rows) {
  double of_mean = 0;
  for (const double value : sum_d) of_mean += value * value;
  const double rest = squares - of_mean / rows;
  if (!std::isfinite(rest)) return kNan;  // overflowed: nothing is known
  return rest > 1e-13 * squares ? rest : 0;
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
    {"fvu", "share", "sum |x - x_hat|^2 / sum |x - mean x|^2, one mean over all rows", fvu},
    {"explained_variance", "share", "1 - fvu", explained_variance},
    {"explained_variance_legacy", "share",
     "mean of 1 - |x - x_hat|^2 / |x - batch mean|^2; depends on the batches, for comparison only",
     legacy},
    {"frac_variance_explained", "share", "1 - Var(x - x_hat) / Var(x); blind to a constant error",
     frac_variance_explained},
    {"nmse_zero", "share", "sum |x - x_hat|^2 / sum |x|^2; flatters data with a large mean",
     nmse_zero},
    {"nmse_per_example", "share", "mean of |x - x_hat|^2 / |x|^2 over rows with x != 0",
     nonzero_row_mean<RowSum::nmse_per_example>},
    {"mse", "norm^2", "mean of |x - x_hat|^2, summed over coordinates", row_mean<RowSum::r_sq>},
    {"cossim", "cosine", "mean of cos(x, x_hat), 0 where x_hat = 0", row_mean<RowSum::cosine>},
    {"l2_ratio", "ratio", "mean of |x_hat| / |x| over rows with x != 0",
     nonzero_row_mean<RowSum::norm_ratio>},
    {"relative_reconstruction_bias", "ratio", "sum |x_hat|^2 / sum x.x_hat; below 1 is shrinkage",
     shrinkage},
    {"l0", "latents", "mean number of latents with z > 0 in a row", l0_mean},
    {"l0_p5", "latents", "5 % of the rows have at most this many", l0_percentile<5>},
    {"l0_p50", "latents", "half of the rows have at most this many", l0_percentile<50>},
    {"l0_p95", "latents", "95 % of the rows have at most this many", l0_percentile<95>},
    {"l1", "norm", "mean of sum_j |z_j| |w_dec_j|", row_mean<RowSum::l1>},
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

bool is_count(const Metric& metric) {
  return metric.name == "rows" || metric.name.starts_with("density_");
}

}  // namespace

std::span<const Metric> all_metrics() {
  return kMetrics;
}

double MetricReport::operator[](std::string_view name) const {
  for (const MetricValue& row : values)
    if (row.metric->name == name) return row.value;
  fail(ExitCode::error, fmt::format("there is no metric '{}'", name));
}

MetricReport finish(const MetricTotals& totals) {
  MetricReport report;
  for (const Metric& metric : kMetrics) report.values.push_back({&metric, metric.value(totals)});
  report.density_histogram = totals.latents.histogram;
  return report;
}

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
  json["feature_density"] = {{"log10_from", kDensityLog10From},
                             {"width", kDensityBinWidth},
                             {"counts", report.density_histogram}};
  return json;
}

std::string metrics_text(const MetricReport& report) {
  std::string text;
  for (const auto& [metric, value] : report.values) {
    const std::string number = !std::isfinite(value) ? "-"
                               : is_count(*metric)   ? fmt::format("{:.0f}", value)
                                                     : fmt::format("{:.6g}", value);
    text += fmt::format("{:<28} {:>12} {:<8} {}\n", metric->name, number, metric->unit,
                        metric->definition);
  }
  text += "latents by log10 density:\n";
  for (int i = 0; i < kDensityBins; ++i) {
    const int64_t count = report.density_histogram[static_cast<size_t>(i)];
    const double from = kDensityLog10From + kDensityBinWidth * i;
    if (count > 0)
      text += fmt::format("  {:>6.2f} to {:>6.2f} {:>10}\n", from, from + kDensityBinWidth, count);
  }
  return text;
}

}  // namespace megadict
