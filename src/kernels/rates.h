// What this machine can do, measured on all threads: the bounds that benchmarks are compared with
// and that the planner computes from.
#pragma once

#include <cstdint>

#include "kernels/screen_product.h"

namespace megadict {

// fp32 products of tiles that stay in cache by the BLAS inside LibTorch: FLOP/s.
double sgemm_tile_rate(int64_t d, double seconds);
// A screen's product on rows of which nothing passes: operations (2 a multiply-add) / s; 0 where
// this processor has no fast version.
double screen_tile_rate(ScreenKind kind, int64_t d, double seconds);
// Reads and writes in order of memory larger than any cache, as an optimiser's pass makes them:
// bytes/s.
double stream_rate(double seconds);
// Reads of rows of d floats in random order: bytes/s.
double random_row_rate(int64_t d, double seconds);

}  // namespace megadict
