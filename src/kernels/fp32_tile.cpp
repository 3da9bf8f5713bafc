#include "kernels/fp32_tile.h"

#include <algorithm>
#include <array>
#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
// GCC 12 takes its own header's undefined vectors for mistakes of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace megadict {

namespace {

constexpr int64_t kRows = Fp32Block::kRows;

inline void append(Fp32Block& block, int64_t row, int64_t latent, float value) {
  if (block.count[row] == block.capacity) block.full(block, row);
  block.hits[row * block.capacity + block.count[row]++] = {static_cast<int32_t>(latent), value};
}

void run_scalar(const float* w, const float* bias, int64_t d, int64_t first, int64_t last,
                Fp32Block& block) {
  for (int64_t j = first; j < last; ++j) {
    float sum[kRows] = {};
    for (int64_t i = 0; i < d; ++i) {
      const float its_w = w[j * d + i];
      for (int64_t row = 0; row < kRows; ++row)
        sum[row] = std::fma(block.x[i * kRows + row], its_w, sum[row]);
    }
    for (int64_t row = 0; row < block.rows; ++row) {
      const float value = sum[row] + bias[j];
      if (!(value <= block.threshold[row])) append(block, row, j, value);
    }
  }
}

#if defined(__x86_64__)
#define MEGADICT_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define MEGADICT_AVX2 __attribute__((target("avx2,fma")))

// kVectors x kLatents sums stay in registers. Every loop over them is unrolled: an array that is
// indexed at run time lives in memory (half the rate).
template <int kLatents, int kVectors>
MEGADICT_AVX512 void products512(const float* w, int64_t d, const float* x, float* out) {
  __m512 sum[kLatents][kVectors];
#pragma GCC unroll 6
  for (auto& of_latent : sum)
#pragma GCC unroll 4
    for (__m512& s : of_latent) s = _mm512_setzero_ps();
  for (int64_t i = 0; i < d; ++i, x += kRows) {
    __m512 rows[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) rows[v] = _mm512_loadu_ps(x + 16 * v);
#pragma GCC unroll 6
    for (int a = 0; a < kLatents; ++a) {
      const __m512 its_w = _mm512_set1_ps(w[a * d + i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[a][v] = _mm512_fmadd_ps(rows[v], its_w, sum[a][v]);
    }
  }
#pragma GCC unroll 6
  for (int a = 0; a < kLatents; ++a)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_store_ps(out + a * kRows + 16 * v, sum[a][v]);
}

MEGADICT_AVX512 void filter512(const float* sum, float bias, int64_t j, int vectors,
                               Fp32Block& block) {
  const __m512 its_bias = _mm512_set1_ps(bias);
  for (int v = 0; v < vectors * 16; v += 16) {
    const __m512 value = _mm512_add_ps(_mm512_load_ps(sum + v), its_bias);
    __mmask16 passed = _mm512_cmp_ps_mask(value, _mm512_loadu_ps(block.threshold + v), _CMP_NLE_UQ);
    if (passed == 0) continue;
    alignas(64) float values[16];
    _mm512_store_ps(values, value);
    for (; passed != 0; passed &= static_cast<__mmask16>(passed - 1)) {
      const int lane = __builtin_ctz(passed);
      if (v + lane < block.rows) append(block, v + lane, j, values[lane]);
    }
  }
}

template <int kVectors>
MEGADICT_AVX512 void run512(const float* w, const float* bias, int64_t d, int64_t first,
                            int64_t last, Fp32Block& block) {
  constexpr int kWide = 6;
  alignas(64) float sum[kWide * kRows];
  for (int64_t j = first; j < last; j += kWide) {
    const int64_t count = std::min<int64_t>(kWide, last - j);
    if (count == kWide)
      products512<kWide, kVectors>(w + j * d, d, block.x, sum);
    else
      for (int64_t a = 0; a < count; ++a)
        products512<1, kVectors>(w + (j + a) * d, d, block.x, sum + a * kRows);
    for (int64_t a = 0; a < count; ++a)
      filter512(sum + a * kRows, bias[j + a], j + a, kVectors, block);
  }
}

void run_avx512(const float* w, const float* bias, int64_t d, int64_t first, int64_t last,
                Fp32Block& block) {
  const auto run = block.rows > 32 ? run512<4> : block.rows > 16 ? run512<2> : run512<1>;
  run(w, bias, d, first, last, block);
}

template <int kLatents>
MEGADICT_AVX2 void products256(const float* w, int64_t d, const float* x, float* out) {
  __m256 sum[kLatents][2];
#pragma GCC unroll 6
  for (auto& of_latent : sum) of_latent[0] = of_latent[1] = _mm256_setzero_ps();
  for (int64_t i = 0; i < d; ++i, x += kRows) {
    const __m256 low = _mm256_loadu_ps(x), high = _mm256_loadu_ps(x + 8);
#pragma GCC unroll 6
    for (int a = 0; a < kLatents; ++a) {
      const __m256 its_w = _mm256_broadcast_ss(w + a * d + i);
      sum[a][0] = _mm256_fmadd_ps(low, its_w, sum[a][0]);
      sum[a][1] = _mm256_fmadd_ps(high, its_w, sum[a][1]);
    }
  }
#pragma GCC unroll 6
  for (int a = 0; a < kLatents; ++a) {
    _mm256_storeu_ps(out + a * kRows, sum[a][0]);
    _mm256_storeu_ps(out + a * kRows + 8, sum[a][1]);
  }
}

MEGADICT_AVX2 void run_avx2(const float* w, const float* bias, int64_t d, int64_t first,
                            int64_t last, Fp32Block& block) {
  constexpr int kWide = 6;
  float sum[kWide * kRows];
  for (int64_t j = first; j < last; j += kWide) {
    const int64_t count = std::min<int64_t>(kWide, last - j);
    for (int64_t row = 0; row < block.rows; row += 16)
      if (count == kWide)
        products256<kWide>(w + j * d, d, block.x + row, sum + row);
      else
        for (int64_t a = 0; a < count; ++a)
          products256<1>(w + (j + a) * d, d, block.x + row, sum + a * kRows + row);
    for (int64_t a = 0; a < count; ++a)
      for (int64_t row = 0; row < block.rows; ++row) {
        const float value = sum[a * kRows + row] + bias[j + a];
        if (!(value <= block.threshold[row])) append(block, row, j + a, value);
      }
  }
}

#endif

constexpr std::array kTiles = {
#if defined(__x86_64__)
    Fp32Tile{Isa::avx512, run_avx512},
    Fp32Tile{Isa::avx2, run_avx2},
#endif
    Fp32Tile{Isa::scalar, run_scalar},
};

}  // namespace

std::span<const Fp32Tile> all_fp32_tiles() {
  return kTiles;
}

const Fp32Tile& best_fp32_tile(Isa isa) {
  return best_available(kTiles, isa);
}

}  // namespace megadict
