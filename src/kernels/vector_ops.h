// Loops over one row of d floats, compiled for AVX-512, AVX2 and plain x86-64 and picked at run
// time. Sums run in a fixed order, so that equal input gives equal bits on one kind of processor.
#pragma once

#include <cstdint>

#include "kernels/kernel_set.h"

namespace megadict {

double dot(const float* a, const float* b, int64_t d);
void add_scaled(float* y, float factor, const float* x, int64_t d);  // y += factor * x
// One Adam step on a row; `along` = <g, w> is removed from the gradient first (0: nothing).
void adam_row(float* w, const float* g, float* m, float* v, int64_t d, float along,
              const AdamArgs& args);
void scale_to_unit(float* w, int64_t d);  // a zero row stays

}  // namespace megadict
