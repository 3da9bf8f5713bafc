// One screening of some rows: packed for the tile, run over all encoder rows, resolved in fp32.
#pragma once

#include <cstdint>

#include "kernels/kernel_set.h"
#include "kernels/memory.h"
#include "kernels/screen_tile.h"

namespace megadict {

struct ScreenPass {
  const EncodeArgs& args;
  const ScreenRows& w;
  const float* bias;
  int64_t k, rows, blocks, capacity, dims;  // dims: kept apart
  double window;
  Buffer<uint8_t> x;  // packed for the tile
  Buffer<float> norm, unit, inverse, step, size, reach,
      threshold;        // by row, padded to whole blocks
  Buffer<float> apart;  // [blocks, dims, 64], in units of the row
  Buffer<Hit> hits;
  Buffer<int32_t> count;
  Buffer<uint8_t> hopeless;  // not to be told by the product, or its hits do not fit

  ScreenPass(const EncodeArgs& args_, const ScreenRows& w_, int64_t k_, double window_);
  float slack() const;
  void pack(int64_t row);
  float* apart_at(int64_t row, int64_t i);
  void start_at(int64_t row, float value);
  double value_of(int64_t row, const Hit& hit);
  // `window` standard deviations of the rounding error of a pair.
  double margin_of(int64_t row, int64_t latent) const;
  // Drops the hits of a row that k others surely beat; gives the row up where few can go.
  void make_room(int64_t row);
  void screen_blocks(const ScreenTile& tile, int64_t begin, int64_t end);
  // The best k of a row's hits by exact values; returns how many were evaluated.
  int64_t resolve(int64_t row, float* value, int32_t* latent);
};

}  // namespace megadict
