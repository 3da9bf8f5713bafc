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

// Least of a few runs after a first one that warms the caches.
double least_time(const std::function<void()>& work) {
  constexpr int kRuns = 7;
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
  for (int64_t t = 0; t < x.tiles(); ++t) {
    const float* from = x.tile(t);
    for (int64_t r = 0; r < w.outs; ++r) {
      float sums[kLane];
      std::fill(sums, sums + kLane, bias == nullptr ? 0.0F : bias[r]);
      const auto end = static_cast<size_t>(w.begin[static_cast<size_t>(r) + 1]);
      for (auto e = static_cast<size_t>(w.begin[static_cast<size_t>(r)]); e < end; ++e) {
        const float* value = from + static_cast<int64_t>(w.column[e]) * kLane;
        for (int64_t lane = 0; lane < kLane; ++lane) sums[lane] += w.value[e] * value[lane];
      }
      std::copy(sums, sums + kLane, y.tile(t) + r * kLane);
    }
  }
}

ProductTimes time_products(const Linear<float>& layer, double threshold, const Tiles<float>& x) {
  const Learnt<float>& weight = layer.weight;
  const CompressedRows rows = compress(weight, threshold);
  Tiles<float> y(x.samples(), weight.rows);
  ProductTimes times;
  times.compressed_s = least_time([&] { multiply(rows, layer.bias.value.data(), x, y); });
  times.tiles_s = least_time([&] { layer.forward(x, y); });
  const at::Tensor dense_x = rows_of(x);
  const at::Tensor w =
      at::from_blob(const_cast<float*>(weight.value.data()), {weight.rows, weight.cols});
  const at::Tensor b = at::from_blob(const_cast<float*>(layer.bias.value.data()), {weight.rows});
  at::Tensor dense_y = at::empty({x.samples(), weight.rows});
  times.gemm_s = least_time([&] { at::addmm_out(dense_y, b, dense_x, w.t()); });
  return times;
}

double break_even_density(int64_t outs, int64_t ins, const Tiles<float>& x, uint64_t seed) {
  constexpr double kDensities[] = {.005, .01, .02, .04, .08, .12, .16, .2, .3, .4, .5, .7, 1};
  const Rng rng{seed, Purpose::lab_draw, 0};
  Linear<float> layer{{"W", outs, ins}, {"b", outs, 1}};
  double before = 0, before_ratio = 0;
  for (const double density : kDensities) {
    for (size_t i = 0; i < layer.weight.value.size(); ++i)
      layer.weight.value[i] = rng.uniform(i) < density ? 1.0F : 0.0F;
    const ProductTimes times = time_products(layer, .5, x);
    const double ratio = times.compressed_s / times.dense_s();
    if (ratio >= 1) {
      if (before == 0) return 0;
      return before + (density - before) * (1 - before_ratio) / (ratio - before_ratio);
    }
    before = density;
    before_ratio = ratio;
  }
  return 1;
}

}  // namespace megadict
