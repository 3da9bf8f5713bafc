// L2g: products with a weight matrix of which few entries are left, in compressed rows, over the
// same tiles and threads as the dense ones.
#pragma once

#include <cstdint>
#include <vector>

#include "lab/layers.h"

namespace megadict {

// Row r holds entries begin[r] to begin[r + 1].
struct CompressedRows {
  int64_t outs = 0, ins = 0;
  std::vector<int32_t> begin, column;
  std::vector<float> value;
  int64_t entries() const { return static_cast<int64_t>(value.size()); }
};

// The entries above `threshold` in absolute value.
CompressedRows compress(const Learnt<float>& weight, double threshold);
// y = W x + bias
void multiply(const CompressedRows& w, const float* bias, const Tiles<float>& x, Tiles<float>& y);

// Of one layer on the same samples and this thread, the least of several runs, in seconds: by
// compressed rows; dense by multiply() of tiles.h; dense by LibTorch's GEMM, row-major.
struct ProductTimes {
  double compressed_s = 0, tiles_s = 0, gemm_s = 0;
  double dense_s() const { return tiles_s < gemm_s ? tiles_s : gemm_s; }
};
// Of the layer whose entries above `threshold` the compressed rows keep.
ProductTimes time_products(const Linear<float>& layer, double threshold, const Tiles<float>& x);

// The share of entries at which compressed rows and the faster dense product take the same time,
// between densities of random matrices of that shape that are timed; 1 where compressed rows are
// always faster, 0 where they never are.
double break_even_density(int64_t outs, int64_t ins, const Tiles<float>& x, uint64_t seed);

}  // namespace megadict
