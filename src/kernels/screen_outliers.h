// Dims so much larger than the others that they spoil a screen's rounding (screen.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/screen_product.h"

namespace megadict {

// Of rows x [rows, d] and w [latents, d], a sample of each: at most `most` dims, ascending, without
// which the variance of the product's error (screen_product.h) is clearly less; none where there
// are none.
std::vector<int64_t> outlier_dims(const ScreenProduct& product, const float* x, int64_t rows,
                                  const float* w, int64_t latents, int64_t d, int64_t most);

}  // namespace megadict
