// One-to-one matching of the rows of a similarity matrix with its columns.
#pragma once

#include <cstdint>
#include <vector>

namespace megadict {

// `similarity` is row-major [rows, cols]; either side may be the longer one. Both return for each
// row its column, -1 for the rows left over when rows > cols; min(rows, cols) pairs are made.

// The matching with the largest sum: shortest augmenting paths with dual prices (Jonker and
// Volgenant, Computing 38, 1987). O(n^3) time at worst, far less on similarities; a copy of the
// matrix when rows > cols.
std::vector<int64_t> best_assignment(const double* similarity, int64_t rows, int64_t cols);

// Takes the largest entry left (ties: the lowest row, then the lowest column), deletes its row and
// column, and so on. O(m log m) for m entries.
std::vector<int64_t> greedy_assignment(const double* similarity, int64_t rows, int64_t cols);

}  // namespace megadict
