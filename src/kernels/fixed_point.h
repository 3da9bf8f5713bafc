// Sums whose bits do not depend on their order: every term
// is rounded to a 64-bit integer in units of a power of two, and integers add exactly.
#pragma once

#include <ATen/core/Tensor.h>

#include <bit>
#include <cstdint>

namespace megadict {

struct FixedPoint {
  double up = 1;    // terms are multiplied by it; a power of two
  double down = 1;  // and sums by this
};

// For at most `terms` terms, none larger than `largest` (finite): no sum overflows, and a term
// keeps 51 bits below the largest, fewer with more than 2048 terms.
FixedPoint fixed_point(double largest, int64_t terms);
// The same where the terms' magnitudes add up to no more than `total` (finite).
FixedPoint fixed_point_within(double largest, double total);

// Rounds to the nearest integer, half to even; |x| <= 2^51. Without a branch or a conversion, so
// that loops over it vectorise.
inline int64_t rounded(double x) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
  return std::bit_cast<int64_t>(x + kShift) - std::bit_cast<int64_t>(kShift);
}

// Largest |element|; infinity where one is not finite. 0 for no elements.
double largest_magnitude(const at::Tensor& x);

}  // namespace megadict
