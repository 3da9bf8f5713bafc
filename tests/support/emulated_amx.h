// The tile operations of AMX in plain code, as the processor's manual defines them: eight tiles of
// 16 rows of 64 bytes. A Unit for kernels/amx_tile.h.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/amx_tile.h"

namespace megadict {

class EmulatedAmx {
 public:
  EmulatedAmx() { ++configured; }
  ~EmulatedAmx() { --configured; }
  EmulatedAmx(const EmulatedAmx&) = delete;
  EmulatedAmx& operator=(const EmulatedAmx&) = delete;
  static inline thread_local int configured = 0;

  template <int kTile>
  void load(const void* from, int64_t stride) {
    for (int row = 0; row < 16; ++row)
      std::memcpy(tiles_[kTile][row], static_cast<const uint8_t*>(from) + row * stride, 64);
  }
  template <int kTile>
  void stream_load(const void* from, int64_t stride) {
    load<kTile>(from, stride);
  }
  template <int kTile>
  void zero() {
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  template <int kTile>
  void store(void* to, int64_t stride) {
    for (int row = 0; row < 16; ++row)
      std::memcpy(static_cast<uint8_t*>(to) + row * stride, tiles_[kTile][row], 64);
  }
  template <class Product, int kC, int kA, int kB>
  void dot() {
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 16; ++n) {
        uint32_t c;
        std::memcpy(&c, &tiles_[kC][m][4 * n], 4);
        c = std::is_same_v<Product, Int8Product> ? tdpbsud(c, tiles_[kA][m], n, kB)
                                                 : tdpbf16ps(c, tiles_[kA][m], n, kB);
        std::memcpy(&tiles_[kC][m][4 * n], &c, 4);
      }
  }

 private:
  // Row k of B holds, at 4 n, the four bytes that meet bytes 4 k of a row of A.
  uint32_t tdpbsud(uint32_t c, const uint8_t* a, int n, int b) const {
    for (int k = 0; k < 16; ++k)
      for (int i = 0; i < 4; ++i)
        c += static_cast<uint32_t>(static_cast<int8_t>(a[4 * k + i]) *
                                   static_cast<int32_t>(tiles_[b][k][4 * n + i]));
    return c;
  }

  // Two chains of fused multiply-adds, even and odd elements, then their sum; numbers too small for
  // the format count as zero.
  uint32_t tdpbf16ps(uint32_t c, const uint8_t* a, int n, int b) const {
    float chain[2] = {0, 0};
    for (int k = 0; k < 16; ++k)
      for (int i = 0; i < 2; ++i)
        chain[i] = flushed(
            std::fma(bf16(a + 4 * k + 2 * i), bf16(&tiles_[b][k][4 * n + 2 * i]), chain[i]));
    const float both = flushed(chain[0] + chain[1]);
    return std::bit_cast<uint32_t>(flushed(flushed(std::bit_cast<float>(c)) + both));
  }

  static float bf16(const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return flushed(std::bit_cast<float>(uint32_t{bits} << 16));
  }
  static float flushed(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? 0.0f : v; }

  uint8_t tiles_[8][16][64] = {};
};

template <class Product>
ScreenTile emulated_amx_tile() {
  using Tile = AmxTile<EmulatedAmx, Product, filter_scalar<Product>>;
  return {Isa::scalar, Product::kKind, Tile::kLatents, Tile::run};
}

}  // namespace megadict
