// Angles between columns: by hand, and their gradient by differences.
#include "lab/column_angles.h"

#include <gtest/gtest.h>

#include <cmath>

namespace megadict {
namespace {

TEST(ColumnAngles, ByHand) {
  Learnt<double> d("D", 2, 3);  // (1, 0), (0, 1), (.6, .8)
  d.value = {1, 0, .6, 0, 1, .8};
  // cos^2 of the pairs: 0, .36, .64.
  EXPECT_NEAR(mean_squared_cosine(d), 1.0 / 3, 1e-12);
}

TEST(ColumnAngles, TheGradientIsThatOfDifferences) {
  Learnt<double> d("D", 5, 7);
  draw_normal(d, 11, 0);
  make_columns_unit(d);
  std::fill(d.gradient.begin(), d.gradient.end(), 2.0);
  add_angle_gradient(d, -.3);
  constexpr double kStep = 1e-6;
  for (size_t i = 0; i < d.value.size(); ++i) {
    Learnt<double> more = d, less = d;
    more.value[i] += kStep;
    less.value[i] -= kStep;
    const double slope =
        -.3 * (mean_squared_cosine(more) - mean_squared_cosine(less)) / (2 * kStep);
    EXPECT_NEAR(d.gradient[i] - 2, slope, 1e-8) << i;
  }
}

TEST(ColumnAngles, HistogramOfPairs) {
  const std::vector<std::vector<double>> rows = {{1, 0}, {0, 1}, {1, 0}};
  const std::vector<double> shares = cosine_histogram(rows, 4);
  EXPECT_NEAR(shares[2], 2.0 / 3, 1e-12);  // 0 twice
  EXPECT_NEAR(shares[3], 1.0 / 3, 1e-12);  // 1 once
  EXPECT_TRUE(cosine_histogram({}, 4)[0] == 0);
}

}  // namespace
}  // namespace megadict
