#include "eval/assignment.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace megadict {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Rows <= columns; cost = -similarity. Prices keep cost - u_i - v_j >= 0, = 0 on matched pairs,
// and v = 0 on columns that are free (a rectangular problem is optimal only then).
class Assignment {
 public:
  Assignment(const double* similarity, size_t rows, size_t cols)
      : similarity_(similarity),
        rows_(rows),
        cols_(cols),
        u_(rows),
        v_(cols),
        column_of_(rows, -1),
        row_of_(cols, -1),
        distance_(cols),
        via_(cols) {}

  std::vector<int64_t> solve() {
    // Start: each row's best column where nobody was faster.
    for (size_t i = 0; i < rows_; ++i) {
      const double* row = similarity_ + i * cols_;
      const auto best = static_cast<size_t>(std::max_element(row, row + cols_) - row);
      u_[i] = -row[best];
      if (row_of_[best] < 0) match(i, best);
    }
    for (size_t i = 0; i < rows_; ++i)
      if (column_of_[i] < 0) augment(i);
    return column_of_;
  }

 private:
  void match(size_t row, size_t col) {
    column_of_[row] = static_cast<int64_t>(col);
    row_of_[col] = static_cast<int64_t>(row);
  }

  // Lowers the distances of the columns not reached yet by going through `row`; returns the
  // position in open_ of the nearest one, a free one among equals.
  size_t relax(size_t row, double reached) {
    const double* similarity = similarity_ + row * cols_;
    const double base = reached - u_[row];
    size_t nearest = 0;
    double nearest_distance = kInfinity;
    for (size_t at = 0; at < open_.size(); ++at) {
      const size_t j = open_[at];
      const double through = base - similarity[j] - v_[j];
      if (through < distance_[j]) {
        distance_[j] = through;
        via_[j] = row;
      }
      if (distance_[j] < nearest_distance || (distance_[j] == nearest_distance && row_of_[j] < 0)) {
        nearest_distance = distance_[j];
        nearest = at;
      }
    }
    return nearest;
  }

  // Dijkstra from a free row to the nearest free column, then prices and matches along the path.
  void augment(size_t start) {
    std::fill(distance_.begin(), distance_.end(), kInfinity);
    open_.resize(cols_);
    std::iota(open_.begin(), open_.end(), size_t{0});
    reached_.clear();
    size_t row = start, col = 0;
    double reached = 0;
    for (;;) {
      const size_t at = relax(row, reached);
      col = open_[at];
      reached = distance_[col];
      open_[at] = open_.back();
      open_.pop_back();
      if (row_of_[col] < 0) break;
      reached_.push_back(col);
      row = static_cast<size_t>(row_of_[col]);
    }
    u_[start] += reached;
    for (const size_t j : reached_) {
      u_[static_cast<size_t>(row_of_[j])] += reached - distance_[j];
      v_[j] -= reached - distance_[j];
    }
    for (;;) {
      const size_t from = via_[col];
      const int64_t given_up = column_of_[from];
      match(from, col);
      if (from == start) return;
      col = static_cast<size_t>(given_up);
    }
  }

  const double* similarity_;
  size_t rows_, cols_;
  std::vector<double> u_, v_;
  std::vector<int64_t> column_of_, row_of_;
  std::vector<double> distance_;  // of a column, along the shortest alternating path so far
  std::vector<size_t> via_;       // the row before the column on that path
  std::vector<size_t> open_, reached_;
};

}  // namespace

std::vector<int64_t> best_assignment(const double* similarity, int64_t rows, int64_t cols) {
  const auto r = static_cast<size_t>(rows), c = static_cast<size_t>(cols);
  if (rows <= cols)
    return rows == 0 ? std::vector<int64_t>{} : Assignment(similarity, r, c).solve();
  std::vector<double> transposed(r * c);
  for (size_t i = 0; i < r; ++i)
    for (size_t j = 0; j < c; ++j) transposed[j * r + i] = similarity[i * c + j];
  std::vector<int64_t> column_of(r, -1);
  if (cols == 0) return column_of;
  const std::vector<int64_t> row_of = Assignment(transposed.data(), c, r).solve();
  for (size_t j = 0; j < c; ++j)
    column_of[static_cast<size_t>(row_of[j])] = static_cast<int64_t>(j);
  return column_of;
}

std::vector<int64_t> greedy_assignment(const double* similarity, int64_t rows, int64_t cols) {
  std::vector<int64_t> order(static_cast<size_t>(rows * cols));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return similarity[a] != similarity[b] ? similarity[a] > similarity[b] : a < b;
  });
  std::vector<int64_t> column_of(static_cast<size_t>(rows), -1);
  std::vector<bool> taken(static_cast<size_t>(cols));
  for (const int64_t entry : order) {
    const auto row = static_cast<size_t>(entry / cols), col = static_cast<size_t>(entry % cols);
    if (column_of[row] >= 0 || taken[col]) continue;
    column_of[row] = static_cast<int64_t>(col);
    taken[col] = true;
  }
  return column_of;
}

}  // namespace megadict
