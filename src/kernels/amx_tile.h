// The screen's product on matrix tiles of 16 rows of 64 bytes (AMX), written over a `Unit` with the
// operations of the hardware: the instructions (amx_unit.h), or the tests' emulation of them.
//
// 32 latents by 32 rows of x at a time in 2 x 2 tiles over the whole depth. Latents are the left
// operand, plain rows; x is the right one, which wants four bytes of one row beside each other: as
// RowBlock::x has them. It comes from further away and is loaded past the nearest cache.
// The sums of 32 latents are filtered while the next ones are multiplied.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/screen_filter.h"

namespace megadict {

// Operations of a Unit; tiles are numbered 0 to 7, one object a thread, configured while it lives:
//   load<T>(from, stride in bytes), stream_load<T>(same), zero<T>(), store<T>(to, stride),
//   dot<Product, C, A, B>(): C += A B, A of w, B of x
template <class Unit, class Product, ScreenFilter kFilter>
class AmxTile {
 public:
  static constexpr int64_t kLatents = 32;

  static void run(const ScreenRows& w, const float* bias, int64_t first, int64_t last,
                  RowBlock& block) {
    AmxTile tile{w, bias, last, block};
    for (int64_t j = first; j < last; j += kLatents) tile.multiply(j);
    tile.filter(kLatents);
  }

 private:
  static constexpr int64_t kRows = RowBlock::kRows, kDepth = 64;  // bytes of a row in one tile
  static constexpr int64_t kSumsStride = kRows * 4, kXStride = kRows * 4;

  AmxTile(const ScreenRows& w, const float* bias, int64_t last, RowBlock& block)
      : w_(w), bias_(bias), last_(last), block_(block) {}

  void multiply(int64_t j) {
    int32_t* sums = sums_[current_];
    const int64_t share = std::max<int64_t>(1, kLatents / (2 * (w_.p / kDepth)) + 1);
    for (int64_t half = 0; half < 2; ++half) {
      const uint8_t* x = block_.x + half * kXStride / 2;
      const uint8_t* upper = w_.q.data() + j * w_.p;
      const uint8_t* lower = upper + 16 * w_.p;
      unit_.template zero<0>();
      unit_.template zero<1>();
      unit_.template zero<2>();
      unit_.template zero<3>();
      for (int64_t i = 0; i < w_.p; i += kDepth, x += kDepth / 4 * kXStride) {
        unit_.template stream_load<6>(x, kXStride);
        unit_.template stream_load<7>(x + 64, kXStride);
        unit_.template load<4>(upper + i, w_.p);
        unit_.template dot<Product, 0, 4, 6>();
        unit_.template dot<Product, 1, 4, 7>();
        unit_.template load<5>(lower + i, w_.p);
        unit_.template dot<Product, 2, 5, 6>();
        unit_.template dot<Product, 3, 5, 7>();
        filter(share);
      }
      int32_t* to = sums + half * kRows / 2;
      unit_.template store<0>(to, kSumsStride);
      unit_.template store<1>(to + 16, kSumsStride);
      unit_.template store<2>(to + 16 * kRows, kSumsStride);
      unit_.template store<3>(to + 16 * kRows + 16, kSumsStride);
    }
    filter(kLatents);  // what is left of the last ones
    next_ = j;
    end_ = std::min(j + kLatents, last_);
    filtered_ = sums;
    current_ = 1 - current_;
  }

  void filter(int64_t latents) {
    for (; latents > 0 && next_ < end_; --latents, ++next_, filtered_ += kRows)
      kFilter(w_, bias_, next_, filtered_, block_);
  }

  const ScreenRows& w_;
  const float* bias_;
  int64_t last_;
  RowBlock& block_;
  alignas(64) int32_t sums_[2][kLatents * kRows];
  int current_ = 0;
  int64_t next_ = 0, end_ = 0;  // latents whose sums wait at filtered_
  const int32_t* filtered_ = nullptr;
  Unit unit_;
};

}  // namespace megadict
