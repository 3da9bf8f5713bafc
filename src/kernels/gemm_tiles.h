// Tiles of x W_enc^T + b_enc through the BLAS inside LibTorch, each consumed while it is in cache
// (performance.md 2.1): no b x l tensor exists.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/kernel_set.h"

// Exported by libtorch_cpu.so; no second BLAS is linked.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* lda,
                       const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace megadict {

inline constexpr int64_t kTileRows = 256, kTileLatents = 512;

// Calls visit(row, first latent, v, count) for every row of `rows` and tile of latents, latents
// ascending; v = x W_enc^T + b_enc. Runs on one thread.
template <class Visit>
void for_each_tile(const EncodeArgs& args, int64_t row_begin, int64_t row_end, Visit&& visit) {
  const int64_t l = args.w_enc_ld.size(0), d = args.w_enc_ld.size(1);
  const float* x = args.x_bd.const_data_ptr<float>();
  const float* w = args.w_enc_ld.const_data_ptr<float>();
  const float* bias = args.b_enc_l.const_data_ptr<float>();
  std::vector<float> tile(static_cast<size_t>(kTileRows * kTileLatents));
  const int rows = static_cast<int>(row_end - row_begin), depth = static_cast<int>(d);
  for (int64_t first = 0; first < l; first += kTileLatents) {
    const int count = static_cast<int>(std::min(kTileLatents, l - first));
    const float one = 1.0f;
    // Row-major C = X W^T is column-major C^T = W X^T. Biases go in first: beta = 1.
    for (int r = 0; r < rows; ++r)
      std::memcpy(tile.data() + static_cast<int64_t>(r) * count, bias + first,
                  static_cast<size_t>(count) * sizeof(float));
    sgemm_("T", "N", &count, &rows, &depth, &one, w + first * d, &depth, x + row_begin * d, &depth,
           &one, tile.data(), &count);
    for (int r = 0; r < rows; ++r)
      visit(row_begin + r, first, tile.data() + static_cast<int64_t>(r) * count, count);
  }
}

}  // namespace megadict
