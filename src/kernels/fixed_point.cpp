#include "kernels/fixed_point.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace megadict {

FixedPoint fixed_point(double largest, int64_t terms) {
  if (!(largest > 0)) return {};
  const int count_bits = terms > 1 ? std::bit_width(static_cast<uint64_t>(terms - 1)) : 0;
  const int bits = std::min(51, 62 - count_bits);
  const int exponent = std::clamp(bits - (std::ilogb(largest) + 1), -900, 900);
  return {std::ldexp(1.0, exponent), std::ldexp(1.0, -exponent)};
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
