#include "data/normalization.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"

namespace megadict {

namespace {

struct Sums {
  double square = 0, norm = 0;  // means over rows of |x - m|^2 and |x - m|
};

std::vector<double> mean_row(const float* sample, int64_t rows, int64_t width) {
  std::vector<double> mean(static_cast<size_t>(width));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) mean[static_cast<size_t>(i)] += sample[r * width + i];
  for (double& value : mean) value /= static_cast<double>(rows);
  return mean;
}

// `center` = 0 or 1: whether `mean` is subtracted.
Sums sums_about(const float* sample, int64_t rows, int64_t width, const std::vector<double>& mean,
                double center) {
  Sums sums;
  for (int64_t r = 0; r < rows; ++r) {
    double square = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double value = sample[r * width + i] - center * mean[static_cast<size_t>(i)];
      square += value * value;
    }
    sums.square += square / static_cast<double>(rows);
    sums.norm += std::sqrt(square) / static_cast<double>(rows);
  }
  return sums;
}

}  // namespace

SampleStatistics measure_sample(const DataConfig& config, const float* sample, int64_t rows,
                                int64_t width) {
  const std::vector<double> mean = mean_row(sample, rows, width);
  const Sums plain = sums_about(sample, rows, width, mean, 0);
  const Sums centered = sums_about(sample, rows, width, mean, 1);
  if (!(centered.square > 1e-12 * plain.square))
    fail(ExitCode::bad_data,
         fmt::format("all {} rows of the data's first sample are equal: nothing to learn", rows));

  const Sums& seen = config.center ? centered : plain;
  double scale = 0;
  if (config.normalize == "none") scale = 1;
  if (config.normalize == "unit_rms")
    scale = 1 / std::sqrt(config.scale * config.scale * seen.square);
  if (config.normalize == "sqrt_d")
    scale = std::sqrt(static_cast<double>(width)) / (std::fabs(config.scale) * seen.norm);
  if (scale == 0)
    fail(ExitCode::usage, fmt::format("data.normalize is '{}'", config.normalize),
         "none, unit_rms or sqrt_d");

  SampleStatistics found;
  found.normalization.scale = scale * config.scale;
  if (config.center) found.normalization.mean.assign(mean.begin(), mean.end());
  found.var_total = found.normalization.scale * found.normalization.scale * centered.square;
  if (!(found.var_total > 1e-30 && found.var_total < 1e30))
    fail(ExitCode::bad_data,
         fmt::format("the variance of the scaled rows is {:.3g}, outside 1e-30 to 1e30: sums in "
                     "fp32 would lose it",
                     found.var_total),
         "--data.normalize unit_rms, or another data.scale");
  if (!(std::fabs(found.normalization.scale) < 1e30))
    fail(ExitCode::bad_data,
         fmt::format("the rows' mean norm is {:.3g}: what scales them is beyond fp32", plain.norm),
         "shards of larger numbers");
  found.mean_norm = plain.norm;
  found.gamma = std::sqrt((plain.square - centered.square) / centered.square);
  return found;
}

}  // namespace megadict
