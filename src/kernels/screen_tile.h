// The product inside the int8 screen: 64 rows of x against encoder rows, both quantised, with the
// filter that keeps what may matter. A closed list of versions; tests compare each that runs here
// with the scalar one.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/isa.h"
#include "kernels/memory.h"

namespace megadict {

// Encoder rows as the tile reads them. Row j of w is scale[j] * q[j], p = d rounded up to 64.
struct QuantisedRows {
  int64_t rows = 0, d = 0, p = 0;
  Buffer<int8_t> q;     // [rows, p]
  Buffer<float> scale;  // largest |w| / 127
  Buffer<float> shift;  // scale * -128 * sum of q: undoes the offset of x
  Buffer<float> norm;   // |w|

  QuantisedRows(int64_t rows, int64_t d);
  static int64_t padded(int64_t d) { return (d + 63) / 64 * 64; }
  void set(int64_t row, const float* w);
};

// A pair that passed the filter; `sum` = sum of (q_x + 128) q_w.
struct Hit {
  int32_t latent, sum;
};

// 64 rows of x as the tile reads them, what decides about a hit and where hits go. In units of a
// row's own scale s: a pair passes where
//   scale (sum + reach) + shift + slack norm + bias inverse > threshold.
struct RowBlock {
  static constexpr int64_t kRows = 64;
  const uint8_t* x;        // [p / 4][64][4], q_x + 128
  const float* inverse;    // 1 / s
  const float* reach;      // slack |x| / s
  const float* threshold;  // may rise in `full`
  float slack;             // standard deviations / sqrt(12)
  Hit* hits;               // [64, capacity]
  int32_t* count;          // [64]
  int32_t capacity;
  void (*full)(RowBlock&, int64_t row);  // makes room: row's list has `capacity` hits
  void* context;
};

struct ScreenTile {
  Isa isa;
  // All latents in [first, last); `bias` [rows of w].
  void (*run)(const QuantisedRows& w, const float* bias, int64_t first, int64_t last, RowBlock&);
};

std::span<const ScreenTile> all_screen_tiles();  // best first, scalar last
const ScreenTile& best_screen_tile(Isa isa = isa_in_use());
bool has_fast_screen(Isa isa);  // the scalar version is for tests: slower than the exact encode

}  // namespace megadict
