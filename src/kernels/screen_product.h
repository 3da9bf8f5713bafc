// The products a screen may use: how a row becomes few bits, and what its rounding can hide. A
// closed list; tests loop over it.
//
// Rounding moves an element of a row by up to half a step of the number format, which is taken for
// independent and uniform: the error of <x, w> has variance
//   (sum step_x,i^2 w_i^2 + x_i^2 step_w,i^2) / 12 <= (step_x^2 size_w^2 + size_x^2 step_w^2) / 12
// with two numbers of each row:
//   int8: elements are multiples of one step, largest |v| / 127; size = |v|. Integer sums are
//   exact. bf16: an element's step is 2^(e-7) where 2^e <= |v_i| < 2^(e+1). By Cauchy and Schwarz
//     sum a_i^2 b_i^2 <= sqrt(sum a_i^4) sqrt(sum b_i^4), so step and size are the fourth roots of
//     the sums of fourth powers. Its sum is fp32: d additions, each rounded by at most 2^-24 of a
//     partial sum, and that is at most |x| |w| <= sqrt(d) size_x size_w. The variance of these,
//     d * (2^-23 sqrt(d) size_x size_w)^2 / 12, is one of a step d 2^-23 size_x more of x.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace megadict {

enum class ScreenKind : uint8_t { int8, bf16 };

struct PackedRow {
  bool usable = false;  // the product can tell this row; if not, nothing else is set
  float unit = 1;       // what one unit of a packed element is worth
  float step = 0, size = 0;
  int32_t sum = 0;  // of packed int8 elements
};

struct ScreenProduct {
  ScreenKind kind;
  std::string_view name;  // as in kernels.encode
  std::string_view element;
  int64_t element_bytes;
  int32_t offset;   // added to elements of x, so that they are unsigned
  double sum_step;  // of fp32 sums, as above: in units of d size_x
  PackedRow (*pack)(const float* row, int64_t d, uint8_t* to);
  // A sum of products, in units of x's row; `shift` undoes the offset.
  double (*value)(int32_t sum, float step, float shift);
  // What a row of x adds to `slack` = 1 in the tile's filter, before division by its unit.
  double (*reach)(float step, float size);

  // Bytes of a packed row: what fills no vector is 0.
  int64_t padded(int64_t d) const { return (d * element_bytes + 63) / 64 * 64; }
};

std::span<const ScreenProduct> all_screen_products();
const ScreenProduct& screen_product(ScreenKind kind);
const ScreenProduct* screen_named(std::string_view encode);  // nullptr = that is no screen

}  // namespace megadict
