#include "lab/column_angles.h"

#include <algorithm>
#include <cmath>

namespace megadict {

namespace {

// D D^T, [width, width].
template <class T>
std::vector<double> outer_of(const Learnt<T>& d) {
  std::vector<double> outer(static_cast<size_t>(d.rows * d.rows));
  for (int64_t a = 0; a < d.rows; ++a)
    for (int64_t b = 0; b < d.rows; ++b) {
      double sum = 0;
      for (int64_t j = 0; j < d.cols; ++j)
        sum += static_cast<double>(d.value[static_cast<size_t>(a * d.cols + j)]) *
               static_cast<double>(d.value[static_cast<size_t>(b * d.cols + j)]);
      outer[static_cast<size_t>(a * d.rows + b)] = sum;
    }
  return outer;
}

template <class T>
double pairs_of(const Learnt<T>& d) {
  return static_cast<double>(d.cols * (d.cols - 1));
}

}  // namespace

template <class T>
double mean_squared_cosine(const Learnt<T>& d) {
  double squares = 0;
  for (const double one : outer_of(d)) squares += one * one;
  return (squares - static_cast<double>(d.cols)) / pairs_of(d);
}

template <class T>
void add_angle_gradient(Learnt<T>& d, double factor) {
  const std::vector<double> outer = outer_of(d);
  const double by = 4 * factor / pairs_of(d);
  for (int64_t a = 0; a < d.rows; ++a)
    for (int64_t j = 0; j < d.cols; ++j) {
      double sum = 0;
      for (int64_t b = 0; b < d.rows; ++b)
        sum += outer[static_cast<size_t>(a * d.rows + b)] *
               static_cast<double>(d.value[static_cast<size_t>(b * d.cols + j)]);
      d.gradient[static_cast<size_t>(a * d.cols + j)] += static_cast<T>(by * sum);
    }
}

template double mean_squared_cosine(const Learnt<float>& d);
template double mean_squared_cosine(const Learnt<double>& d);
template void add_angle_gradient(Learnt<float>& d, double factor);
template void add_angle_gradient(Learnt<double>& d, double factor);

std::vector<double> cosine_histogram(const std::vector<std::vector<double>>& unit_rows, int bins) {
  std::vector<double> shares(static_cast<size_t>(bins));
  double pairs = 0;
  for (size_t i = 0; i < unit_rows.size(); ++i)
    for (size_t j = i + 1; j < unit_rows.size(); ++j) {
      double cosine = 0;
      for (size_t f = 0; f < unit_rows[i].size(); ++f) cosine += unit_rows[i][f] * unit_rows[j][f];
      const int bin = static_cast<int>(std::floor((cosine + 1) / 2 * bins));
      shares[static_cast<size_t>(std::clamp(bin, 0, bins - 1))] += 1;
      ++pairs;
    }
  if (pairs > 0)
    for (double& share : shares) share /= pairs;
  return shares;
}

}  // namespace megadict
