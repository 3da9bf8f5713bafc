// Every number about a reconstruction that needs no language model, from sums in
// fp64 that are added over rows, batches and ranks and divided once. No ratio is averaged over
// batches or ranks, so batch size, row order and mesh do not show in the results.
//
//   MetricSums sums(d, n, my_latents, shift);
//   sums.add_rows(...);  sums.add_fired(...);        // once per batch
//   sums.set_decoder_norms(...);                     // once
//   MetricReport report = finish(reduce_metrics(sums, *mesh.world, *mesh.data, *mesh.feature));
//
// Rows should be raw ones (normalisation undone on x and x_hat), so that the numbers are those of
// the exported dictionary; ratios against the variance (fvu) are the same either way.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/range.h"

namespace megadict {

// Sums over rows t; r = x - x_hat, s = x - shift, |.| Euclidean.
enum class RowSum {
  s_sq,              // |s|^2
  x_sq,              // |x|^2
  x_hat_sq,          // |x_hat|^2
  x_dot_x_hat,       // x . x_hat
  r_sq,              // |r|^2
  cosine,            // x . x_hat / (|x| |x_hat|), 0 where either is 0
  norm_ratio,        // |x_hat| / |x| over rows with |x| > 0
  nmse_per_example,  // |r|^2 / |x|^2 over rows with |x| > 0
  l1,
  // What peers print under a near name.
  r_norm,             // |r|
  norm_ratio_at_one,  // |x_hat| / |x|, |x| below 1e-4 taken for 1
  l1_plain,           // sum of |z_j|, whatever the norms of the decoder's rows
  // Defined by batches: added by end_batch().
  legacy,     // 1 - |r|^2 / |x - mean of the batch|^2, where that is not 0 / 0
  batch_fvu,  // of a batch: its fvu, its ...
  batch_fve,
  batch_bias,
  count_
};

enum class RowCount {
  rows,
  rows_nonzero,  // |x| > 0
  rows_blank,    // x_hat = 0
  rows_legacy,
  batches,       // whose rows differ
  batches_bias,  // with x . x_hat != 0
  count_
};

constexpr size_t kRowSums = static_cast<size_t>(RowSum::count_);
constexpr size_t kRowCounts = static_cast<size_t>(RowCount::count_);

// Of one row.
struct RowScalars {
  double s_sq = 0, x_sq = 0, x_hat_sq = 0, x_dot_x_hat = 0, r_sq = 0;
};

// What row sums add up to; the part of a MetricSums that is disjoint between all ranks.
struct RowSums {
  std::array<double, kRowSums> sums{};
  std::array<int64_t, kRowCounts> counts{};
  std::vector<double> s_d, r_d;       // sum of s, of r, by coordinate
  std::vector<int64_t> l0_histogram;  // [i] = rows with i active latents; as long as needed

  double& operator[](RowSum i) { return sums[static_cast<size_t>(i)]; }
  double operator[](RowSum i) const { return sums[static_cast<size_t>(i)]; }
  int64_t& operator[](RowCount i) { return counts[static_cast<size_t>(i)]; }
  int64_t operator[](RowCount i) const { return counts[static_cast<size_t>(i)]; }
};

// sum_t |v_t - mean v|^2 from the sums of squares and of vectors; what is left of a constant after
// rounding counts as nothing.
double scatter(double squares, const std::vector<double>& sum_d, double rows);

// Sums over rows as add_rows() takes them; appends what is known of each row to `scalars`.
RowSums sum_rows(const float* x_bd, const float* x_hat_bd, int64_t rows, const int64_t* l0_b,
                 const double* l1_b, const double* l1_plain_b, std::span<const double> shift_d,
                 std::vector<RowScalars>* scalars = nullptr);
// Adds them up; `sums` may be empty.
void add_to(RowSums& sums, const RowSums& part);

// One rank's share: its own rows, and its own latents' counts over the rows of its data group.
class MetricSums {
 public:
  // `shift_d`: d numbers near the mean row, the same on all ranks (the mean of the first chunk of
  // the evaluation set, say), so that the variance does not cancel. Empty = zero.
  MetricSums(int64_t d, int64_t n, Range latents, std::vector<float> shift_d = {});

  // `rows` rows of width d. l0_b: active latents (z > 0) of each row over the whole dictionary;
  // l1_b: sum of |z_j| |w_dec_j| of each row, l1_plain_b: of |z_j| (absent: the rows are unit, so
  // that it is the same). Rows added by different ranks must be disjoint.
  void add_rows(const float* x_bd, const float* x_hat_bd, int64_t rows, const int64_t* l0_b,
                const double* l1_b, const double* l1_plain_b = nullptr);
  // The rows added since the last call were one batch, by which some peers average. Of a batch that
  // is spread over ranks `whole` is the sum of their batch_sums(), and one of them `counts` it.
  void end_batch() { end_batch(batch_sums(), true); }
  void end_batch(const std::vector<double>& whole, bool counts);
  std::vector<double> batch_sums() const;
  // fired_l[i]: in how many of this data group's rows latent latents().begin + i had z > 0.
  void add_fired(std::span<const int64_t> fired_l);
  // Euclidean norms of this rank's decoder rows; replaces what was set before.
  void set_decoder_norms(std::span<const double> norms_l);
  // Adds a part with the same width, latents and shift.
  void merge(const MetricSums& other);

  int64_t d() const { return d_; }
  int64_t n() const { return n_; }
  Range latents() const { return latents_; }
  const std::vector<double>& shift() const { return shift_d_; }
  const RowSums& row_sums() const { return rows_; }
  const std::vector<int64_t>& fired_l() const { return fired_l_; }
  double decoder_norm_min() const { return norm_min_; }  // +inf while none is set
  double decoder_norm_max() const { return norm_max_; }  // -inf
  double decoder_norm_sum() const { return norm_sum_; }

 private:
  int64_t d_, n_;
  Range latents_;
  std::vector<double> shift_d_;
  RowSums rows_;
  RowSums batch_;  // since the last end_batch(), with the rows themselves
  std::vector<float> batch_x_;
  std::vector<RowScalars> batch_scalars_;
  std::vector<int64_t> fired_l_;
  double norm_min_, norm_max_, norm_sum_ = 0;

  void add_legacy(const RowSums& batch);
};

// Density of latent j: f_j = rows with z_j > 0 / N. Bins of .25 of log10(f + 1e-10), -10 to 0.
constexpr int kDensityBins = 40;
constexpr double kDensityBinWidth = 0.25, kDensityLog10From = -10.0;

enum class LatentCount { alive, below_1e5, below_1e6, below_1e7, above_1e1, above_1e2, count_ };

// Tallies over a range of latents; they add up over disjoint ranges.
struct LatentTally {
  std::array<int64_t, static_cast<size_t>(LatentCount::count_)> counts{};
  std::array<int64_t, kDensityBins> histogram{};
  double log10_sum = 0;

  int64_t operator[](LatentCount i) const { return counts[static_cast<size_t>(i)]; }
};

LatentTally tally_latents(std::span<const int64_t> fired_l, int64_t rows);

// The whole evaluation set and the whole dictionary.
struct MetricTotals {
  int64_t d = 0, n = 0;
  RowSums rows;
  LatentTally latents;
  double decoder_norm_min = 0, decoder_norm_max = 0, decoder_norm_sum = 0;
};

class Communicator;

// MetricSums::end_batch() of a batch spread over the ranks of world. Collective, also for a rank
// that added no row.
void end_batch(MetricSums& sums, Communicator& world);

// Collective over world, data and feature (mesh.h): row sums over world, counts per latent over
// data, tallies of latents over feature. Every rank gets the totals.
MetricTotals reduce_metrics(const MetricSums& sums, Communicator& world, Communicator& data,
                            Communicator& feature);
// The same for one process that holds all rows and all latents.
MetricTotals totals_of(const MetricSums& sums);

// One metric: how it is called, what it means, how it follows from the totals. NaN = undefined
// here (no rows, no variance, ...).
struct Metric {
  std::string_view name, unit, definition;
  double (*value)(const MetricTotals&);
  bool of_rows = false;  // follows from sums over rows alone: resampling rows resamples it
};
std::span<const Metric> all_metrics();

struct MetricValue {
  const Metric* metric;
  double value;
};

// What another tool prints under the name of one of ours, or near it, where that is another number.
struct PeerMetric {
  std::string_view metric;  // of ours, beside which it is shown
  std::string_view name;    // "saebench.explained_variance"
  std::string_view definition;
  double (*value)(const MetricTotals&);
};
std::span<const PeerMetric> peer_metrics();

struct PeerValue {
  const PeerMetric* metric;
  double value;
};

// Where a metric lies with the bootstrap's confidence (bootstrap.h); NaN = unknown.
struct MetricInterval {
  const Metric* metric;
  double low = std::numeric_limits<double>::quiet_NaN(), high = low, standard_error = low;
};

struct MetricIntervals {
  std::string unit;  // what was resampled: "document", "block"
  int64_t units = 0, resamples = 0;
  double confidence = 0;
  std::vector<MetricInterval> of;
};

struct MetricReport {
  std::vector<MetricValue> values;  // in the order of all_metrics()
  std::vector<PeerValue> peers;     // in the order of peer_metrics()
  std::array<int64_t, kDensityBins> density_histogram{};
  bool with_density = true;
  MetricIntervals intervals;  // empty where none were asked for

  double operator[](std::string_view name) const;  // exit 1 for a name that is not in the table
};

MetricReport finish(const MetricTotals& totals);

// Names a report can be cut down to: those of all_metrics() and feature_density.
std::vector<std::string> report_names();
// Leaves these alone, and what peers print beside them.
void keep_only(MetricReport& report, const std::vector<std::string>& names);

// {"rows": N, "fvu": ..., ..., "peers": {"sparsify.fvu": ..., ...}, "feature_density":
// {"log10_from", "width", "counts"}}; undefined values are null. With intervals: "bootstrap"
// {"unit", "units", "resamples", "confidence", "intervals" {"fvu": {"low", "high",
// "standard_error"}, ...}}.
nlohmann::ordered_json metrics_json(const MetricReport& report);
// One line a metric: name, value, unit, definition, and below it those of peers; then the density
// histogram.
std::string metrics_text(const MetricReport& report);

// The mean row of `rows` rows: a shift for MetricSums.
std::vector<float> mean_row(const float* x_bd, int64_t rows, int64_t d);

}  // namespace megadict
