#include "kernels/fixed_point.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace megadict {

namespace {

// Units so small that `largest` becomes less than 2^bits.
int exponent_for(double largest, int bits) {
  return std::clamp(bits - (std::ilogb(largest) + 1), -900, 900);
}

FixedPoint unit_of(int exponent) {
  return {std::ldexp(1.0, exponent), std::ldexp(1.0, -exponent)};
}

constexpr int kTermBits = 51;  // rounded()

}  // namespace

FixedPoint fixed_point(double largest, int64_t terms) {
  if (!(largest > 0)) return {};
  const int count_bits = terms > 1 ? std::bit_width(static_cast<uint64_t>(terms - 1)) : 0;
  return unit_of(exponent_for(largest, std::min(kTermBits, 62 - count_bits)));
}

// Rounding adds at most half a unit a term, far less than the bit that is left.
FixedPoint fixed_point_within(double largest, double total) {
  if (!(largest > 0) || !(total > 0)) return {};
  return unit_of(std::min(exponent_for(largest, kTermBits), exponent_for(total, 62)));
}

// In blocks: |x| as a whole would be a second copy of it.
double largest_magnitude(const at::Tensor& x) {
  constexpr int64_t kBlock = int64_t{1} << 20;
  const at::Tensor flat = x.reshape({-1});
  double largest = 0;
  for (int64_t begin = 0; begin < flat.numel(); begin += kBlock) {
    const at::Tensor block = flat.narrow(0, begin, std::min(kBlock, flat.numel() - begin));
    const double here = block.abs().max().item<double>();  // NaN where there is one
    if (!std::isfinite(here)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, here);
  }
  return largest;
}

}  // namespace megadict
