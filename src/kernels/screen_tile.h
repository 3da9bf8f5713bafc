// The product inside a screen: 64 rows of x against encoder rows, both in few bits, with the filter
// that keeps what may matter. A closed list of versions; tests compare each that runs here with the
// scalar one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/isa.h"
#include "kernels/memory.h"
#include "kernels/screen_product.h"

namespace megadict {

// Encoder rows as the tile reads them. Dims that are kept `apart` are 0 in the packed rows; their
// product is added in fp32.
struct ScreenRows {
  const ScreenProduct* product;
  int64_t rows, d, p;          // p: bytes of a packed row
  Buffer<uint8_t> q;           // [rows, p], and room for a tile that reaches over the end
  Buffer<float> step, size;    // screen_product.h
  Buffer<float> shift;         // int8: step * -128 * sum of q, undoes the offset of x
  std::vector<int64_t> apart;  // dims, at most kMostApart
  Buffer<float> apart_w;       // [rows, apart.size()]

  static constexpr int64_t kMostApart = 16;
  ScreenRows(const ScreenProduct& product, int64_t rows, int64_t d);
  void keep_apart(std::vector<int64_t> dims);  // every row must be set again
  void set(int64_t row, const float* w);
  int64_t bytes() const;
};

// A pair that passed the filter; `sum` = int8: sum of (q_x + 128) q_w, bf16: the bits of the fp32
// sum.
struct Hit {
  int32_t latent, sum;
};

// 64 rows of x as the tile reads them, what decides about a hit and where hits go. In units of x's
// row, with the sum of products in fp32 of the dims apart in `rest`, a pair passes where
//   int8: step_w (sum + reach) + shift + slack size_w + rest + bias inverse > threshold
//   bf16:         sum + size_w reach                  + rest + bias inverse > threshold
struct RowBlock {
  static constexpr int64_t kRows = 64;
  const uint8_t* x;        // [p / 4][64][4]: bytes of q_x, int8 + 128
  const float* inverse;    // 1 / unit
  const float* reach;      // ScreenProduct::reach * slack / unit
  const float* threshold;  // may rise in `full`
  const float* apart;      // [dims apart][64], x / unit
  float slack;             // standard deviations / sqrt(12)
  Hit* hits;               // [64, capacity]
  int32_t* count;          // [64]
  int32_t capacity;
  void (*full)(RowBlock&, int64_t row);  // makes room: row's list has `capacity` hits
  void* context;
};

struct ScreenTile {
  Isa isa;
  ScreenKind kind;
  int64_t latents;  // that it works on at once
  // All latents in [first, last); `bias` [rows of w].
  void (*run)(const ScreenRows& w, const float* bias, int64_t first, int64_t last, RowBlock&);
};

std::span<const ScreenTile> all_screen_tiles(ScreenKind kind);  // best first, scalar last
const ScreenTile& best_screen_tile(ScreenKind kind, Isa isa = isa_in_use());
// The scalar version is for tests: slower than the exact encode.
bool has_fast_screen(ScreenKind kind, Isa isa = isa_in_use());

}  // namespace megadict
