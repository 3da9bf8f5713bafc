#include "kernels/screen_tile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
// GCC 12 takes its own header's _mm512_undefined for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "kernels/vector_ops.h"

namespace megadict {

QuantisedRows::QuantisedRows(int64_t rows_, int64_t d_)
    : rows(rows_), d(d_), p(padded(d_)), q(rows * p, 0), scale(rows), shift(rows), norm(rows) {}

void QuantisedRows::set(int64_t row, const float* w) {
  const float largest = largest_magnitude(w, d), inverse = largest > 0 ? 127 / largest : 1.0f;
  const double its_norm = std::sqrt(dot(w, w, d));
  // A row that int8 cannot tell passes always: fp32 decides.
  if (!std::isfinite(its_norm) || !std::isfinite(inverse) || mostly_lost(w, d, inverse)) {
    std::fill_n(q.data() + row * p, d, int8_t{0});
    scale[row] = 1;
    shift[row] = 0;
    norm[row] = std::numeric_limits<float>::infinity();
    return;
  }
  const int64_t sum = quantise(w, d, inverse, q.data() + row * p);
  scale[row] = 1 / inverse;
  shift[row] = -128.0f / inverse * static_cast<float>(sum);
  norm[row] = static_cast<float>(its_norm);
}

namespace {

inline void append(RowBlock& block, int64_t row, int64_t latent, int32_t sum) {
  if (block.count[row] == block.capacity) block.full(block, row);
  block.hits[row * block.capacity + block.count[row]++] = {static_cast<int32_t>(latent), sum};
}

void run_scalar(const QuantisedRows& w, const float* bias, int64_t first, int64_t last,
                RowBlock& block) {
  for (int64_t j = first; j < last; ++j) {
    const int8_t* q = w.q.data() + j * w.p;
    const float base = w.shift[j] + block.slack * w.norm[j];
    for (int64_t row = 0; row < RowBlock::kRows; ++row) {
      int32_t sum = 0;
      for (int64_t i = 0; i < w.p; ++i) sum += block.x[(i / 4 * 64 + row) * 4 + i % 4] * q[i];
      const float value = w.scale[j] * (static_cast<float>(sum) + block.reach[row]) + base;
      if (value + bias[j] * block.inverse[row] > block.threshold[row]) append(block, row, j, sum);
    }
  }
}

#if defined(__x86_64__)
#define MEGADICT_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

// The 64 rows are four vectors; kWide latents at a time keep 4 kWide sums in registers. Every loop
// over them is unrolled: an array that is indexed at run time lives in memory (half the rate).
constexpr int kVectors = 4, kWide = 6;

MEGADICT_VNNI void filter(const QuantisedRows& w, const float* bias, int64_t j, const int32_t* sum,
                          RowBlock& block) {
  const __m512 scale = _mm512_set1_ps(w.scale[j]), its_bias = _mm512_set1_ps(bias[j]);
  const __m512 base = _mm512_set1_ps(w.shift[j] + block.slack * w.norm[j]);
  for (int v = 0; v < kVectors * 16; v += 16) {
    const __m512 reached = _mm512_add_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sum + v)),
                                         _mm512_loadu_ps(block.reach + v));
    const __m512 value = _mm512_fmadd_ps(its_bias, _mm512_loadu_ps(block.inverse + v),
                                         _mm512_fmadd_ps(scale, reached, base));
    __mmask16 passed = _mm512_cmp_ps_mask(value, _mm512_loadu_ps(block.threshold + v), _CMP_GT_OQ);
    for (; passed != 0; passed &= static_cast<__mmask16>(passed - 1)) {
      const int row = v + __builtin_ctz(passed);
      append(block, row, j, sum[row]);
    }
  }
}

template <int kLatents>
MEGADICT_VNNI void products(const QuantisedRows& w, const float* bias, int64_t j, RowBlock& block) {
  __m512i sum[kLatents][kVectors];
#pragma GCC unroll 6
  for (auto& of_latent : sum)
#pragma GCC unroll 4
    for (__m512i& s : of_latent) s = _mm512_setzero_si512();
  const int8_t* q = w.q.data() + j * w.p;
  const uint8_t* x = block.x;
  for (int64_t i = 0; i < w.p; i += 4, x += 64 * kVectors) {
    __m512i rows[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) rows[v] = _mm512_loadu_si512(x + 64 * v);
#pragma GCC unroll 6
    for (int a = 0; a < kLatents; ++a) {
      int32_t four;
      std::memcpy(&four, q + a * w.p + i, 4);
      const __m512i w4 = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[a][v] = _mm512_dpbusd_epi32(sum[a][v], rows[v], w4);
    }
  }
  alignas(64) int32_t sums[kLatents][RowBlock::kRows];
#pragma GCC unroll 6
  for (int a = 0; a < kLatents; ++a)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_store_si512(sums[a] + 16 * v, sum[a][v]);
  for (int a = 0; a < kLatents; ++a) filter(w, bias, j + a, sums[a], block);
}

MEGADICT_VNNI void run_vnni(const QuantisedRows& w, const float* bias, int64_t first, int64_t last,
                            RowBlock& block) {
  int64_t j = first;
  for (; j + kWide <= last; j += kWide) products<kWide>(w, bias, j, block);
  for (; j < last; ++j) products<1>(w, bias, j, block);
}
#endif

constexpr std::array kTiles = {
#if defined(__x86_64__)
    ScreenTile{Isa::avx512_vnni, run_vnni},
#endif
    ScreenTile{Isa::scalar, run_scalar},
};

}  // namespace

std::span<const ScreenTile> all_screen_tiles() {
  return kTiles;
}

const ScreenTile& best_screen_tile(Isa isa) {
  return best_available(kTiles, isa);
}

bool has_fast_screen(Isa isa) {
  return best_screen_tile(isa).isa != Isa::scalar;
}

}  // namespace megadict
