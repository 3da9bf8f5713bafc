#include "eval/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace megadict {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

RowScalars scan_row(const float* x, const float* x_hat, const double* shift, int64_t d, double* s_d,
                    double* r_d) {
  double ss = 0, xx = 0, hh = 0, xh = 0, rr = 0;
#pragma omp simd reduction(+ : ss, xx, hh, xh, rr)
  for (int64_t j = 0; j < d; ++j) {
    const double a = x[j], h = x_hat[j], r = a - h, s = a - shift[j];
    ss += s * s;
    xx += a * a;
    hh += h * h;
    xh += a * h;
    rr += r * r;
    s_d[j] += s;
    r_d[j] += r;
  }
  return {ss, xx, hh, xh, rr};
}

void add_scalars(RowSums& sums, const RowScalars& row) {
  sums[RowSum::s_sq] += row.s_sq;
  sums[RowSum::x_sq] += row.x_sq;
  sums[RowSum::x_hat_sq] += row.x_hat_sq;
  sums[RowSum::x_dot_x_hat] += row.x_dot_x_hat;
  sums[RowSum::r_sq] += row.r_sq;
  if (row.x_sq > 0 && row.x_hat_sq > 0)
    sums[RowSum::cosine] += row.x_dot_x_hat / std::sqrt(row.x_sq) / std::sqrt(row.x_hat_sq);
  if (row.x_sq > 0) {
    sums[RowSum::norm_ratio] += std::sqrt(row.x_hat_sq / row.x_sq);
    sums[RowSum::nmse_per_example] += row.r_sq / row.x_sq;
    ++sums[RowCount::rows_nonzero];
  }
  const double x_norm = std::sqrt(row.x_sq);
  sums[RowSum::norm_ratio_at_one] += std::sqrt(row.x_hat_sq) / (x_norm < 1e-4 ? 1 : x_norm);
  sums[RowSum::r_norm] += std::sqrt(row.r_sq);
  if (row.x_hat_sq == 0) ++sums[RowCount::rows_blank];
}

double distance_sq(const float* x, const double* center, int64_t d) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < d; ++j) {
    const double c = x[j] - center[j];
    sum += c * c;
  }
  return sum;
}

// As batch_sums() packs it.
RowSums unpacked_batch(const std::vector<double>& packed, size_t width) {
  RowSums batch;
  batch[RowCount::rows] = static_cast<int64_t>(packed[0]);
  batch[RowSum::s_sq] = packed[1];
  batch[RowSum::r_sq] = packed[2];
  batch[RowSum::x_hat_sq] = packed[3];
  batch[RowSum::x_dot_x_hat] = packed[4];
  const auto vectors = packed.begin() + 5, middle = vectors + static_cast<int64_t>(width);
  batch.s_d.assign(vectors, middle);
  batch.r_d.assign(middle, packed.end());
  return batch;
}

// The ratios of one batch, which are added like sums of a row.
void add_ratios(RowSums& sums, const RowSums& batch) {
  const auto rows = static_cast<double>(batch[RowCount::rows]);
  const double spread = scatter(batch[RowSum::s_sq], batch.s_d, rows);
  if (spread > 0) {
    ++sums[RowCount::batches];
    sums[RowSum::batch_fvu] += batch[RowSum::r_sq] / spread;
    sums[RowSum::batch_fve] += 1 - scatter(batch[RowSum::r_sq], batch.r_d, rows) / spread;
  }
  if (batch[RowSum::x_dot_x_hat] != 0) {
    ++sums[RowCount::batches_bias];
    sums[RowSum::batch_bias] += batch[RowSum::x_hat_sq] / batch[RowSum::x_dot_x_hat];
  }
}

RowSums empty_batch(int64_t d) {
  RowSums batch;
  batch.s_d.resize(static_cast<size_t>(d));
  batch.r_d.resize(static_cast<size_t>(d));
  return batch;
}

}  // namespace

MetricSums::MetricSums(int64_t d, int64_t n, Range latents, std::vector<float> shift_d)
    : d_(d),
      n_(n),
      latents_(latents),
      shift_d_(shift_d.begin(), shift_d.end()),
      fired_l_(static_cast<size_t>(latents.size())),
      norm_min_(kInfinity),
      norm_max_(-kInfinity) {
  const auto width = static_cast<size_t>(d);
  if (shift_d_.empty()) shift_d_.resize(width);
  if (shift_d_.size() != width) fail(ExitCode::error, "metrics: the shift is not one row wide");
  rows_ = batch_ = empty_batch(d);
}

double scatter(double squares, const std::vector<double>& sum_d, double rows) {
  double of_mean = 0;
  for (const double value : sum_d) of_mean += value * value;
  const double rest = squares - of_mean / rows;
  if (!std::isfinite(rest)) return std::numeric_limits<double>::quiet_NaN();
  return rest > 1e-13 * squares ? rest : 0;
}

void add_to(RowSums& sums, const RowSums& part) {
  for (size_t i = 0; i < kRowSums; ++i) sums.sums[i] += part.sums[i];
  for (size_t i = 0; i < kRowCounts; ++i) sums.counts[i] += part.counts[i];
  for (size_t j = 0; j < sums.s_d.size(); ++j) {
    sums.s_d[j] += part.s_d[j];
    sums.r_d[j] += part.r_d[j];
  }
  if (sums.l0_histogram.size() < part.l0_histogram.size())
    sums.l0_histogram.resize(part.l0_histogram.size());
  for (size_t i = 0; i < part.l0_histogram.size(); ++i)
    sums.l0_histogram[i] += part.l0_histogram[i];
}

RowSums sum_rows(const float* x_bd, const float* x_hat_bd, int64_t rows, const int64_t* l0_b,
                 const double* l1_b, const double* l1_plain_b, std::span<const double> shift_d,
                 std::vector<RowScalars>* scalars) {
  const auto d = static_cast<int64_t>(shift_d.size());
  RowSums sums = empty_batch(d);
  sums[RowCount::rows] = rows;
  for (int64_t t = 0; t < rows; ++t) {
    const RowScalars row = scan_row(x_bd + t * d, x_hat_bd + t * d, shift_d.data(), d,
                                    sums.s_d.data(), sums.r_d.data());
    add_scalars(sums, row);
    if (scalars != nullptr) scalars->push_back(row);
    sums[RowSum::l1] += l1_b[t];
    sums[RowSum::l1_plain] += l1_plain_b != nullptr ? l1_plain_b[t] : l1_b[t];
    const auto l0 = static_cast<size_t>(l0_b[t]);
    if (sums.l0_histogram.size() <= l0) sums.l0_histogram.resize(l0 + 1);
    ++sums.l0_histogram[l0];
  }
  return sums;
}

void MetricSums::add_rows(const float* x_bd, const float* x_hat_bd, int64_t rows,
                          const int64_t* l0_b, const double* l1_b, const double* l1_plain_b) {
  if (rows == 0) return;
  for (int64_t t = 0; t < rows; ++t)
    if (l0_b[t] < 0 || l0_b[t] > n_) fail(ExitCode::error, "metrics: l0 outside 0..n");
  // First summed alone: keeps rounding small over many calls.
  const RowSums call =
      sum_rows(x_bd, x_hat_bd, rows, l0_b, l1_b, l1_plain_b, shift_d_, &batch_scalars_);
  add_to(rows_, call);
  add_to(batch_, call);
  batch_x_.insert(batch_x_.end(), x_bd, x_bd + rows * d_);
}

std::vector<double> MetricSums::batch_sums() const {
  std::vector<double> packed = {static_cast<double>(batch_[RowCount::rows]), batch_[RowSum::s_sq],
                                batch_[RowSum::r_sq], batch_[RowSum::x_hat_sq],
                                batch_[RowSum::x_dot_x_hat]};
  packed.insert(packed.end(), batch_.s_d.begin(), batch_.s_d.end());
  packed.insert(packed.end(), batch_.r_d.begin(), batch_.r_d.end());
  return packed;
}

// This rank's rows against the mean of the whole batch.
void MetricSums::add_legacy(const RowSums& batch) {
  std::vector<double> mean(static_cast<size_t>(d_));
  for (size_t j = 0; j < mean.size(); ++j)
    mean[j] = shift_d_[j] + batch.s_d[j] / static_cast<double>(batch[RowCount::rows]);
  for (size_t t = 0; t < batch_scalars_.size(); ++t) {
    const RowScalars& row = batch_scalars_[t];
    const double spread =
        distance_sq(batch_x_.data() + static_cast<int64_t>(t) * d_, mean.data(), d_);
    if (!(spread > 1e-20 * row.x_sq)) continue;  // a row that is the mean
    rows_[RowSum::legacy] += 1 - row.r_sq / spread;
    ++rows_[RowCount::rows_legacy];
  }
}

void MetricSums::end_batch(const std::vector<double>& whole, bool counts) {
  const RowSums batch = unpacked_batch(whole, static_cast<size_t>(d_));
  if (batch[RowCount::rows] > 0) {
    if (counts) add_ratios(rows_, batch);
    add_legacy(batch);
  }
  batch_ = empty_batch(d_);
  batch_x_.clear();
  batch_scalars_.clear();
}

void MetricSums::add_fired(std::span<const int64_t> fired_l) {
  if (fired_l.size() != fired_l_.size())
    fail(ExitCode::error, "metrics: fire counts are not those of this rank's latents");
  for (size_t i = 0; i < fired_l.size(); ++i) fired_l_[i] += fired_l[i];
}

void MetricSums::set_decoder_norms(std::span<const double> norms_l) {
  if (norms_l.size() != fired_l_.size())
    fail(ExitCode::error, "metrics: decoder norms are not those of this rank's latents");
  norm_min_ = kInfinity;
  norm_max_ = -kInfinity;
  norm_sum_ = 0;
  for (const double norm : norms_l) {
    norm_min_ = std::min(norm_min_, norm);
    norm_max_ = std::max(norm_max_, norm);
    norm_sum_ += norm;
  }
}

void MetricSums::merge(const MetricSums& other) {
  if (other.d_ != d_ || other.n_ != n_ || !(other.latents_ == latents_) ||
      other.shift_d_ != shift_d_)
    fail(ExitCode::error, "metrics: parts of different shapes or shifts cannot be merged");
  add_to(rows_, other.rows_);
  add_fired(other.fired_l_);
}

LatentTally tally_latents(std::span<const int64_t> fired_l, int64_t rows) {
  LatentTally tally;
  const auto count = [&](LatentCount i, bool yes) {
    tally.counts[static_cast<size_t>(i)] += yes ? 1 : 0;
  };
  for (const int64_t fired : fired_l) {
    const double f = rows > 0 ? static_cast<double>(fired) / static_cast<double>(rows) : 0;
    const double log10 = std::log10(f + 1e-10);
    count(LatentCount::alive, fired > 0);
    count(LatentCount::below_1e5, f < 1e-5);
    count(LatentCount::below_1e6, f < 1e-6);
    count(LatentCount::below_1e7, f < 1e-7);
    count(LatentCount::above_1e1, f > 1e-1);
    count(LatentCount::above_1e2, f > 1e-2);
    tally.log10_sum += log10;
    const double bin = std::floor((log10 - kDensityLog10From) / kDensityBinWidth);
    ++tally.histogram[static_cast<size_t>(std::clamp(bin, 0.0, kDensityBins - 1.0))];
  }
  return tally;
}

MetricTotals totals_of(const MetricSums& sums) {
  if (sums.latents().size() != sums.n())
    fail(ExitCode::error, "metrics: one process must hold all latents, or reduce over the mesh");
  return {sums.d(),
          sums.n(),
          sums.row_sums(),
          tally_latents(sums.fired_l(), sums.row_sums()[RowCount::rows]),
          sums.decoder_norm_min(),
          sums.decoder_norm_max(),
          sums.decoder_norm_sum()};
}

std::vector<float> mean_row(const float* x_bd, int64_t rows, int64_t d) {
  std::vector<double> sum(static_cast<size_t>(d));
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t j = 0; j < d; ++j) sum[static_cast<size_t>(j)] += x_bd[t * d + j];
  std::vector<float> mean(sum.size());
  for (size_t j = 0; j < sum.size(); ++j)
    mean[j] = static_cast<float>(sum[j] / static_cast<double>(std::max<int64_t>(rows, 1)));
  return mean;
}

}  // namespace megadict
