#include "eval/assignment.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/philox.h"

namespace megadict {
namespace {

struct Matrix {
  int64_t rows, cols;
  std::vector<double> values;
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * cols + j)]; }
};

Matrix random_matrix(int64_t rows, int64_t cols, uint64_t draw, bool ties) {
  Matrix m{rows, cols, {}};
  const Rng rng{11, Purpose::test, draw};
  for (int64_t i = 0; i < rows * cols; ++i) {
    const double value = rng.uniform(static_cast<uint64_t>(i));
    m.values.push_back(ties ? std::floor(value * 4) : value - 0.3);
  }
  return m;
}

// Whole numbers that any language computes alike.
Matrix arithmetic_matrix(int64_t rows, int64_t cols) {
  Matrix m{rows, cols, {}};
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j)
      m.values.push_back(static_cast<double>((i * 7919 + j * 104729 + i * j * 31) % 1009));
  return m;
}

// The sum of a matching, after checking that it is one.
double sum_of(const Matrix& m, const std::vector<int64_t>& column_of) {
  EXPECT_EQ(column_of.size(), static_cast<size_t>(m.rows));
  std::set<int64_t> used;
  double sum = 0;
  for (int64_t i = 0; i < m.rows; ++i) {
    const int64_t j = column_of[static_cast<size_t>(i)];
    if (j < 0) continue;
    EXPECT_LT(j, m.cols);
    EXPECT_TRUE(used.insert(j).second) << "column " << j << " twice";
    sum += m.at(i, j);
  }
  EXPECT_EQ(used.size(), static_cast<size_t>(std::min(m.rows, m.cols)));
  return sum;
}

double best_by_trying_all(const Matrix& m) {
  const bool tall = m.rows > m.cols;
  const int64_t few = std::min(m.rows, m.cols), many = std::max(m.rows, m.cols);
  std::vector<int64_t> order(static_cast<size_t>(many));
  std::iota(order.begin(), order.end(), 0);
  double best = -1e300;
  do {
    double sum = 0;
    for (int64_t i = 0; i < few; ++i) {
      const int64_t other = order[static_cast<size_t>(i)];
      sum += tall ? m.at(other, i) : m.at(i, other);
    }
    best = std::max(best, sum);
  } while (std::next_permutation(order.begin(), order.end()));
  return best;
}

std::vector<int64_t> greedy_by_search(const Matrix& m) {
  std::vector<int64_t> column_of(static_cast<size_t>(m.rows), -1);
  std::vector<bool> taken(static_cast<size_t>(m.cols));
  for (int64_t pick = 0; pick < std::min(m.rows, m.cols); ++pick) {
    int64_t row = -1, col = -1;
    for (int64_t i = 0; i < m.rows; ++i)
      for (int64_t j = 0; j < m.cols; ++j)
        if (column_of[static_cast<size_t>(i)] < 0 && !taken[static_cast<size_t>(j)] &&
            (row < 0 || m.at(i, j) > m.at(row, col))) {
          row = i;
          col = j;
        }
    column_of[static_cast<size_t>(row)] = col;
    taken[static_cast<size_t>(col)] = true;
  }
  return column_of;
}

TEST(Assignment, IsTheBestOfAll) {
  for (int64_t rows = 1; rows <= 7; ++rows)
    for (int64_t cols = 1; cols <= 7; ++cols)
      for (uint64_t draw = 0; draw < 12; ++draw) {
        const Matrix m = random_matrix(rows, cols, draw, draw % 3 == 0);
        EXPECT_NEAR(sum_of(m, best_assignment(m.values.data(), rows, cols)), best_by_trying_all(m),
                    1e-12)
            << rows << " x " << cols << " draw " << draw;
      }
}

// Largest sums found by SciPy 1.17 linear_sum_assignment(maximize=True).
TEST(Assignment, MatchesSciPy) {
  struct Case {
    int64_t rows, cols;
    double sum;
  };
  for (const Case& c : {Case{5, 7, 3968}, {60, 80, 59393}, {80, 60, 59526}, {300, 300, 300177}}) {
    const Matrix m = arithmetic_matrix(c.rows, c.cols);
    EXPECT_EQ(sum_of(m, best_assignment(m.values.data(), c.rows, c.cols)), c.sum);
  }
}

TEST(Assignment, EmptySides) {
  const double nothing = 0;
  EXPECT_TRUE(best_assignment(&nothing, 0, 3).empty());
  EXPECT_EQ(best_assignment(&nothing, 2, 0), (std::vector<int64_t>{-1, -1}));
  EXPECT_EQ(greedy_assignment(&nothing, 2, 0), (std::vector<int64_t>{-1, -1}));
}

// Taking .9 first leaves .1: greedy 1.0 + .8 for the third, best .8 + .7 + .8.
TEST(Assignment, HandCase) {
  const Matrix m{3, 3, {.9, .8, .0, .7, .1, .0, .0, .0, .8}};
  EXPECT_EQ(best_assignment(m.values.data(), 3, 3), (std::vector<int64_t>{1, 0, 2}));
  EXPECT_EQ(greedy_assignment(m.values.data(), 3, 3), (std::vector<int64_t>{0, 1, 2}));
}

TEST(Greedy, TakesTheLargestLeftAndNeverBeatsTheBest) {
  for (uint64_t draw = 0; draw < 1000; ++draw) {
    const auto rows = static_cast<int64_t>(1 + draw % 9), cols = static_cast<int64_t>(1 + draw % 7);
    const Matrix m = random_matrix(rows, cols, draw, draw % 4 == 0);
    const std::vector<int64_t> greedy = greedy_assignment(m.values.data(), rows, cols);
    EXPECT_EQ(greedy, greedy_by_search(m));
    EXPECT_LE(sum_of(m, greedy), sum_of(m, best_assignment(m.values.data(), rows, cols)) + 1e-12);
  }
}

}  // namespace
}  // namespace megadict
