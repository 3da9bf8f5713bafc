// What the versions of the screen's tile share: the arithmetic of each product and the filter of
// one latent's sums over 64 rows. Only for the sources of tiles, and their tests.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/screen_tile.h"

#if defined(__x86_64__)
#include <immintrin.h>
// GCC 12 takes its own header's _mm512_undefined for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define MEGADICT_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
// One template for both products: code of the int8 one has no use for bf16 instructions, which only
// their intrinsics name.
#define MEGADICT_DOT512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")))
#define MEGADICT_INLINE __attribute__((always_inline)) static inline
#endif

namespace megadict {

// A latent's numbers in the filter.
struct FilterTerms {
  float a, b;
};

struct Int8Product {
  static constexpr ScreenKind kKind = ScreenKind::int8;
  static FilterTerms terms(const ScreenRows& w, int64_t j, float slack) {
    return {w.step[j], w.shift[j] + slack * w.size[j]};
  }
  static float optimistic(int32_t sum, float reach, FilterTerms t) {
    return t.a * (static_cast<float>(sum) + reach) + t.b;
  }
  // Four bytes of a row of x and of a row of w.
  static int32_t dot(int32_t sum, const uint8_t* x, const uint8_t* w) {
    for (int i = 0; i < 4; ++i) sum += x[i] * static_cast<int8_t>(w[i]);
    return sum;
  }
#if defined(__x86_64__)
  MEGADICT_INLINE MEGADICT_AVX512 __m512 optimistic(__m512i sum, __m512 reach, __m512 a, __m512 b) {
    return _mm512_fmadd_ps(a, _mm512_add_ps(_mm512_cvtepi32_ps(sum), reach), b);
  }
  MEGADICT_INLINE MEGADICT_DOT512 __m512i dot(__m512i sum, __m512i x, __m512i w) {
    return _mm512_dpbusd_epi32(sum, x, w);
  }
#endif
};

struct Bf16Product {
  static constexpr ScreenKind kKind = ScreenKind::bf16;
  static FilterTerms terms(const ScreenRows& w, int64_t j, float) { return {w.size[j], 0}; }
  static float optimistic(int32_t sum, float reach, FilterTerms t) {
    return t.a * reach + std::bit_cast<float>(sum);
  }
  static int32_t dot(int32_t sum, const uint8_t* x, const uint8_t* w) {
    uint16_t x2[2], w2[2];
    std::memcpy(x2, x, 4);
    std::memcpy(w2, w, 4);
    const auto wide = [](uint16_t v) { return std::bit_cast<float>(uint32_t{v} << 16); };
    return std::bit_cast<int32_t>(std::bit_cast<float>(sum) + wide(x2[0]) * wide(w2[0]) +
                                  wide(x2[1]) * wide(w2[1]));
  }
#if defined(__x86_64__)
  MEGADICT_INLINE MEGADICT_AVX512 __m512 optimistic(__m512i sum, __m512 reach, __m512 a, __m512) {
    return _mm512_fmadd_ps(a, reach, _mm512_castsi512_ps(sum));
  }
  MEGADICT_INLINE MEGADICT_DOT512 __m512i dot(__m512i sum, __m512i x, __m512i w) {
    return _mm512_castps_si512(_mm512_dpbf16_ps(
        _mm512_castsi512_ps(sum), reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w)));
  }
#endif
};

inline void append_hit(RowBlock& block, int64_t row, int64_t latent, int32_t sum) {
  if (block.count[row] == block.capacity) block.full(block, row);
  block.hits[row * block.capacity + block.count[row]++] = {static_cast<int32_t>(latent), sum};
}

// `sum` [64]: of latent j with each row.
using ScreenFilter = void (*)(const ScreenRows& w, const float* bias, int64_t j, const int32_t* sum,
                              RowBlock&);

template <class Product>
void filter_scalar(const ScreenRows& w, const float* bias, int64_t j, const int32_t* sum,
                   RowBlock& block) {
  const FilterTerms terms = Product::terms(w, j, block.slack);
  const auto dims = static_cast<int64_t>(w.apart.size());
  for (int64_t row = 0; row < RowBlock::kRows; ++row) {
    float rest = bias[j] * block.inverse[row];
    for (int64_t i = 0; i < dims; ++i)
      rest += w.apart_w[j * dims + i] * block.apart[i * RowBlock::kRows + row];
    if (Product::optimistic(sum[row], block.reach[row], terms) + rest > block.threshold[row])
      append_hit(block, row, j, sum[row]);
  }
}

#if defined(__x86_64__)
template <class Product>
MEGADICT_AVX512 void filter_avx512(const ScreenRows& w, const float* bias, int64_t j,
                                   const int32_t* sum, RowBlock& block) {
  const FilterTerms terms = Product::terms(w, j, block.slack);
  const __m512 a = _mm512_set1_ps(terms.a), b = _mm512_set1_ps(terms.b);
  const __m512 its_bias = _mm512_set1_ps(bias[j]);
  const auto dims = static_cast<int64_t>(w.apart.size());
  const float* apart_w = w.apart_w.data() + j * dims;
  for (int v = 0; v < RowBlock::kRows; v += 16) {
    __m512 rest = _mm512_mul_ps(its_bias, _mm512_loadu_ps(block.inverse + v));
    for (int64_t i = 0; i < dims; ++i)
      rest = _mm512_fmadd_ps(_mm512_set1_ps(apart_w[i]),
                             _mm512_loadu_ps(block.apart + i * RowBlock::kRows + v), rest);
    const __m512 value = _mm512_add_ps(
        Product::optimistic(_mm512_load_si512(sum + v), _mm512_loadu_ps(block.reach + v), a, b),
        rest);
    __mmask16 passed = _mm512_cmp_ps_mask(value, _mm512_loadu_ps(block.threshold + v), _CMP_GT_OQ);
    for (; passed != 0; passed &= static_cast<__mmask16>(passed - 1)) {
      const int row = v + __builtin_ctz(passed);
      append_hit(block, row, j, sum[row]);
    }
  }
}
#endif

}  // namespace megadict
