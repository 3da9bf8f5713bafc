#include "lab/sparse_product.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/clock.h"
#include "base/clones.h"
#include "base/philox.h"
#include "lab/scores.h"

namespace megadict {

namespace {

// What a register holds, as in tiles.cpp.
typedef float Vector __attribute__((vector_size(32), aligned(alignof(float)), may_alias));
constexpr int64_t kVector = 8, kParts = kLane / kVector;

// A sum over a row's entries is one chain of additions, which a processor can only overlap with
// other chains: those of several tiles.
template <int64_t kTiles>
__attribute__((always_inline)) inline void multiply_tiles(const CompressedRows& w,
                                                          const float* bias, const Tiles<float>& x,
                                                          int64_t first, Tiles<float>& y) {
  const float* from = x.tile(first);
  float* to = y.tile(first);
  const int64_t x_step = w.ins * kLane, y_step = w.outs * kLane;
  const int32_t* column = w.column.data();
  const float* value = w.value.data();
  for (int64_t r = 0; r < w.outs; ++r) {
    Vector sums[kTiles][kParts] = {};
    const int32_t end = w.begin[static_cast<size_t>(r) + 1];
    for (int32_t e = w.begin[static_cast<size_t>(r)]; e < end; ++e) {
      const float* at = from + static_cast<int64_t>(column[e]) * kLane;
      for (int64_t t = 0; t < kTiles; ++t)
        for (int64_t p = 0; p < kParts; ++p)
          sums[t][p] += value[e] * *reinterpret_cast<const Vector*>(at + t * x_step + p * kVector);
    }
    const float start = bias == nullptr ? 0 : bias[r];
    for (int64_t t = 0; t < kTiles; ++t)
      for (int64_t p = 0; p < kParts; ++p)
        *reinterpret_cast<Vector*>(to + t * y_step + r * kLane + p * kVector) = sums[t][p] + start;
  }
}

// Least of a few runs after a first one that warms the caches.
double least_time(const std::function<void()>& work) {
  constexpr int kRuns = 5;
  work();
  double least = std::numeric_limits<double>::infinity();
  for (int run = 0; run < kRuns; ++run) {
    const double begin = seconds_now();
    work();
    least = std::min(least, seconds_now() - begin);
  }
  return least;
}

}  // namespace

CompressedRows compress(const Learnt<float>& weight, double threshold) {
  CompressedRows rows{weight.rows, weight.cols, {0}, {}, {}};
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t c = 0; c < weight.cols; ++c) {
      const float w = weight.value[static_cast<size_t>(r * weight.cols + c)];
      if (!(std::abs(w) > static_cast<float>(threshold))) continue;
      rows.column.push_back(static_cast<int32_t>(c));
      rows.value.push_back(w);
    }
    rows.begin.push_back(static_cast<int32_t>(rows.value.size()));
  }
  return rows;
}

MEGADICT_CLONES void multiply(const CompressedRows& w, const float* bias, const Tiles<float>& x,
                              Tiles<float>& y) {
  constexpr int64_t kTogether = 4;  // tiles whose sums stay in registers
  int64_t t = 0;
  for (; t + kTogether <= x.tiles(); t += kTogether) multiply_tiles<kTogether>(w, bias, x, t, y);
  for (; t < x.tiles(); ++t) multiply_tiles<1>(w, bias, x, t, y);
}

namespace {

double compressed_time(const Linear<float>& layer, double threshold, const Tiles<float>& x) {
  const CompressedRows rows = compress(layer.weight, threshold);
  Tiles<float> y(x.samples(), layer.weight.rows);
  return least_time([&] { multiply(rows, layer.bias.value.data(), x, y); });
}

double gemm_time(const Linear<float>& layer, const Tiles<float>& x) {
  const Learnt<float>& weight = layer.weight;
  const at::Tensor dense_x = rows_of(x);
  const at::Tensor w =
      at::from_blob(const_cast<float*>(weight.value.data()), {weight.rows, weight.cols});
  const at::Tensor b = at::from_blob(const_cast<float*>(layer.bias.value.data()), {weight.rows});
  at::Tensor y = at::empty({x.samples(), weight.rows});
  return least_time([&] { at::addmm_out(y, b, dense_x, w.t()); });
}

}  // namespace

ProductTimes time_products(const Linear<float>& layer, double threshold, const Tiles<float>& x) {
  Tiles<float> y(x.samples(), layer.weight.rows);
  return {compressed_time(layer, threshold, x), least_time([&] { layer.forward(x, y); }),
          gemm_time(layer, x)};
}

double break_even_density(int64_t outs, int64_t ins, const Tiles<float>& x, uint64_t seed) {
  constexpr double kDensities[] = {.005, .01, .02, .04, .08, .12, .16, .2, .3, .4, .5, .7, 1};
  const Rng rng{seed, Purpose::lab_draw, 0};
  Linear<float> layer{{"W", outs, ins}, {"b", outs, 1}};
  const double dense_s = time_products(layer, 0, x).dense_s();  // whatever its values are
  double before = 0, before_s = 0;
  for (const double density : kDensities) {
    for (size_t i = 0; i < layer.weight.value.size(); ++i)
      layer.weight.value[i] = rng.uniform(i) < density ? 1.0F : 0.0F;
    const double now_s = compressed_time(layer, .5, x);
    if (now_s >= dense_s)
      return before == 0 ? 0
                         : before + (density - before) * (dense_s - before_s) / (now_s - before_s);
    before = density;
    before_s = now_s;
  }
  return 1;
}

}  // namespace megadict
