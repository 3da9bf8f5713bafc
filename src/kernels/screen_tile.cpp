#include "kernels/screen_tile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/amx_tile.h"
#include "kernels/screen_filter.h"
#include "kernels/vector_ops.h"

#if defined(__x86_64__)
#include "kernels/amx_unit.h"
#endif

namespace megadict {

namespace {

constexpr int64_t kOverEnd = 32;  // rows that a tile may read after the last
// Of a row's size: with more apart, rounding of what is apart would show beside the margin.
constexpr float kMostApartSize = 4;

}  // namespace

ScreenRows::ScreenRows(const ScreenProduct& product_, int64_t rows_, int64_t d_)
    : product(&product_),
      rows(rows_),
      d(d_),
      p(product_.padded(d_)),
      q((rows + kOverEnd) * p, 0),
      step(rows),
      size(rows),
      shift(rows) {}

void ScreenRows::keep_apart(std::vector<int64_t> dims) {
  apart = std::move(dims);
  apart_w = Buffer<float>(rows * static_cast<int64_t>(apart.size()));
}

void ScreenRows::set(int64_t row, const float* w) {
  std::vector<float> rest;
  double apart_square = 0;
  if (!apart.empty()) {
    rest.assign(w, w + d);
    float* to = apart_w.data() + row * static_cast<int64_t>(apart.size());
    for (const int64_t dim : apart) {
      *to++ = w[dim];
      apart_square += static_cast<double>(w[dim]) * w[dim];
      rest[static_cast<size_t>(dim)] = 0;
    }
    w = rest.data();
  }
  const PackedRow packed = product->pack(w, d, q.data() + row * p);
  // A row that the product cannot tell passes always: fp32 decides.
  if (!packed.usable || !(std::sqrt(apart_square) <= kMostApartSize * packed.size)) {
    if (!packed.usable) std::fill_n(q.data() + row * p, p, uint8_t{0});
    step[row] = 1;
    shift[row] = 0;
    size[row] = std::numeric_limits<float>::infinity();
    const auto dims = static_cast<int64_t>(apart.size());
    std::fill_n(apart_w.data() + row * dims, dims, 0.0f);  // infinity - infinity would not pass
    return;
  }
  step[row] = packed.step;
  size[row] = packed.size;
  shift[row] = -static_cast<float>(product->offset) * packed.unit * static_cast<float>(packed.sum);
}

int64_t ScreenRows::bytes() const {
  return q.size() + 4 * (step.size() + size.size() + shift.size() + apart_w.size());
}

namespace {

template <class Product>
void run_scalar(const ScreenRows& w, const float* bias, int64_t first, int64_t last,
                RowBlock& block) {
  for (int64_t j = first; j < last; ++j) {
    const uint8_t* q = w.q.data() + j * w.p;
    int32_t sum[RowBlock::kRows] = {};
    for (int64_t i = 0; i < w.p; i += 4)
      for (int64_t row = 0; row < RowBlock::kRows; ++row)
        sum[row] = Product::dot(sum[row], block.x + (i / 4 * RowBlock::kRows + row) * 4, q + i);
    filter_scalar<Product>(w, bias, j, sum, block);
  }
}

#if defined(__x86_64__)
// The 64 rows are four vectors; kWide latents at a time keep 4 kWide sums in registers. Every loop
// over them is unrolled: an array that is indexed at run time lives in memory (half the rate).
constexpr int kVectors = 4, kWide = 6;

template <class Product, int kLatents>
MEGADICT_DOT512 void products(const ScreenRows& w, const float* bias, int64_t j, RowBlock& block) {
  __m512i sum[kLatents][kVectors];
#pragma GCC unroll 6
  for (auto& of_latent : sum)
#pragma GCC unroll 4
    for (__m512i& s : of_latent) s = _mm512_setzero_si512();
  const uint8_t* q = w.q.data() + j * w.p;
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
      for (int v = 0; v < kVectors; ++v) sum[a][v] = Product::dot(sum[a][v], rows[v], w4);
    }
  }
  alignas(64) int32_t sums[kLatents][RowBlock::kRows];
#pragma GCC unroll 6
  for (int a = 0; a < kLatents; ++a)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_store_si512(sums[a] + 16 * v, sum[a][v]);
  for (int a = 0; a < kLatents; ++a) filter_avx512<Product>(w, bias, j + a, sums[a], block);
}

template <class Product>
MEGADICT_DOT512 void run_avx512(const ScreenRows& w, const float* bias, int64_t first, int64_t last,
                                RowBlock& block) {
  int64_t j = first;
  for (; j + kWide <= last; j += kWide) products<Product, kWide>(w, bias, j, block);
  for (; j < last; ++j) products<Product, 1>(w, bias, j, block);
}

template <class Product>
using Amx = AmxTile<AmxUnit, Product, filter_avx512<Product>>;
#endif

// Best first of each product.
constexpr std::array kTiles = {
#if defined(__x86_64__)
    ScreenTile{Isa::amx, ScreenKind::int8, Amx<Int8Product>::kLatents, Amx<Int8Product>::run},
    ScreenTile{Isa::avx512_vnni, ScreenKind::int8, kWide, run_avx512<Int8Product>},
#endif
    ScreenTile{Isa::scalar, ScreenKind::int8, 1, run_scalar<Int8Product>},
#if defined(__x86_64__)
    ScreenTile{Isa::amx, ScreenKind::bf16, Amx<Bf16Product>::kLatents, Amx<Bf16Product>::run},
    ScreenTile{Isa::avx512_bf16, ScreenKind::bf16, kWide, run_avx512<Bf16Product>},
#endif
    ScreenTile{Isa::scalar, ScreenKind::bf16, 1, run_scalar<Bf16Product>},
};

}  // namespace

std::span<const ScreenTile> all_screen_tiles(ScreenKind kind) {
  constexpr size_t kEach = kTiles.size() / 2;
  return std::span(kTiles).subspan(kind == ScreenKind::int8 ? 0 : kEach, kEach);
}

const ScreenTile& best_screen_tile(ScreenKind kind, Isa isa) {
  const std::span<const ScreenTile> tiles = all_screen_tiles(kind);
  return *std::find_if(tiles.begin(), tiles.end() - 1,
                       [isa](const ScreenTile& tile) { return tile.isa <= isa; });
}

bool has_fast_screen(ScreenKind kind, Isa isa) {
  return best_screen_tile(kind, isa).isa != Isa::scalar;
}

}  // namespace megadict
