#include "kernels/screen_outliers.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/vector_ops.h"

namespace megadict {

namespace {

constexpr int64_t kSample = 128;     // rows of each kind
constexpr double kWorthwhile = 0.8;  // of the variance
constexpr double kPriceOfDim = 0.1;  // each must save so much of it

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Rows of one kind, finite and not zero, from one end of the memory to the other.
struct Sample {
  int64_t d;
  std::vector<std::vector<float>> rows;

  Sample(const float* all, int64_t count, int64_t d_) : d(d_) {
    const int64_t taken = std::min(count, kSample);
    for (int64_t i = 0; i < taken; ++i) {
      const float* row = all + i * count / taken * d;
      const double square = dot(row, row, d);
      if (square > 0 && std::isfinite(square)) rows.emplace_back(row, row + d);
    }
  }

  // By dim: its mean part of a row's norm, beside that of the median dim.
  std::vector<double> prominence() const {
    std::vector<double> mean(static_cast<size_t>(d), 0.0);
    for (const auto& row : rows) {
      const double norm = std::sqrt(dot(row.data(), row.data(), d));
      for (size_t i = 0; i < mean.size(); ++i) mean[i] += std::fabs(row[i]) / norm;
    }
    const double typical = std::max(median(mean), 1e-30);
    for (double& part : mean) part /= typical;
    return mean;
  }

  void clear(int64_t dim) {
    for (auto& row : rows) row[static_cast<size_t>(dim)] = 0;
  }
};

// Medians over rows: a few odd ones do not decide.
struct Rounding {
  double step_square, size_square;

  Rounding(const ScreenProduct& product, const Sample& sample) {
    std::vector<double> steps, sizes;
    std::vector<uint8_t> packed(static_cast<size_t>(product.padded(sample.d)));
    for (const auto& row : sample.rows) {
      const PackedRow facts = product.pack(row.data(), sample.d, packed.data());
      steps.push_back(facts.usable ? static_cast<double>(facts.step) * facts.step : HUGE_VAL);
      sizes.push_back(static_cast<double>(facts.size) * facts.size);
    }
    step_square = median(steps);
    size_square = median(sizes);
  }
};

double variance(const ScreenProduct& product, const Sample& x, const Sample& w) {
  const Rounding of_x(product, x), of_w(product, w);
  return of_x.step_square * of_w.size_square + of_x.size_square * of_w.step_square;
}

}  // namespace

std::vector<int64_t> outlier_dims(const ScreenProduct& product, const float* x, int64_t rows,
                                  const float* w, int64_t latents, int64_t d, int64_t most) {
  Sample of_x(x, rows, d), of_w(w, latents, d);
  if (of_x.rows.empty() || of_w.rows.empty()) return {};
  const std::vector<double> in_x = of_x.prominence(), in_w = of_w.prominence();
  const auto prominent = [&](int64_t i) {
    return std::max(in_x[static_cast<size_t>(i)], in_w[static_cast<size_t>(i)]);
  };
  std::vector<int64_t> dims(static_cast<size_t>(d));
  std::iota(dims.begin(), dims.end(), int64_t{0});
  std::stable_sort(dims.begin(), dims.end(),
                   [&](int64_t a, int64_t b) { return prominent(a) > prominent(b); });
  dims.resize(static_cast<size_t>(std::min(most, d / 4)));
  const double with_all = variance(product, of_x, of_w);
  double least = kWorthwhile * with_all, price = 1;
  size_t best = 0;  // how many dims to leave out
  for (size_t i = 0; i < dims.size(); ++i) {
    of_x.clear(dims[i]);
    of_w.clear(dims[i]);
    price += kPriceOfDim;
    const double cost = price * variance(product, of_x, of_w);
    if (!(cost < least)) continue;
    least = cost;
    best = i + 1;
  }
  dims.resize(best);
  std::sort(dims.begin(), dims.end());
  return dims;
}

}  // namespace megadict
