// Every operation of every kernel set against the obvious computation, on odd, empty and one-row
// shapes, with ties.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "kernels/kernel_set.h"
#include "kernels/order.h"

namespace megadict {
namespace {

struct Shape {
  int64_t b, d, l, k;
};

class Kernels : public testing::TestWithParam<std::tuple<int, Shape>> {
 protected:
  const KernelSet& set() const {
    return all_kernel_sets()[static_cast<size_t>(std::get<0>(GetParam()))];
  }
  Shape shape() const { return std::get<1>(GetParam()); }

  void SetUp() override {
    at::manual_seed(1);
    const Shape s = shape();
    // Small integers: products are exact and ties are common.
    x_ = at::randint(-3, 4, {s.b, s.d}).to(at::kFloat);
    w_ = at::randint(-2, 3, {s.l, s.d}).to(at::kFloat);
    bias_ = at::randint(-1, 2, {s.l}).to(at::kFloat);
    v_ = at::addmm(bias_, x_, w_.t());
  }

  // Latents of row `row` by (value descending, latent ascending).
  std::vector<int32_t> order_of(int64_t row) const {
    std::vector<int32_t> ids(static_cast<size_t>(shape().l));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    const float* v = v_.const_data_ptr<float>() + row * shape().l;
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return v[a] > v[b]; });
    return ids;
  }

  at::Tensor dense(const Codes& codes) const {
    at::Tensor out = at::zeros({codes.rows, codes.latents});
    auto sums = out.accessor<float, 2>();
    const auto start = codes.row_start.accessor<int64_t, 1>();
    const auto latent = codes.latent.accessor<int32_t, 1>();
    const auto value = codes.value.accessor<float, 1>();
    for (int64_t row = 0; row < codes.rows; ++row)
      for (int64_t e = start[row]; e < start[row + 1]; ++e) sums[row][latent[e]] += value[e];
    return out;
  }

  at::Tensor x_, w_, bias_, v_;
};

TEST_P(Kernels, TopkKeepsTheBestByTheTotalOrder) {
  const Shape s = shape();
  const Candidates got = set().topk({x_, w_, bias_}, s.k);
  const int64_t kept = std::min(s.k, s.l);
  ASSERT_EQ(got.value.sizes(), (at::IntArrayRef{s.b, kept}));
  for (int64_t row = 0; row < s.b; ++row) {
    const std::vector<int32_t> want = order_of(row);
    for (int64_t p = 0; p < kept; ++p) {
      EXPECT_EQ(got.latent[row][p].item<int>(), want[static_cast<size_t>(p)]) << row << " " << p;
      EXPECT_EQ(got.value[row][p].item<float>(),
                v_[row][want[static_cast<size_t>(p)]].item<float>());
    }
  }
}

TEST_P(Kernels, PositiveKeepsWhatReluKeeps) {
  const Codes got = set().positive({x_, w_, bias_});
  EXPECT_TRUE(at::equal(dense(got), v_.relu()));
  EXPECT_EQ(got.nnz(), v_.gt(0).sum().item<int64_t>());
}

// Two shards, candidates selected against the thresholds of the merged lists: exactly the global
// top k after relu.
TEST_P(Kernels, KthAndKeepSelectTheGlobalTopk) {
  const Shape s = shape();
  if (s.l < 2) return;
  const int64_t half = s.l / 2, c = s.k;
  at::Tensor lists = at::full({2, s.b, c}, -std::numeric_limits<float>::infinity());
  Candidates parts[2];
  for (int64_t part : {0, 1}) {
    const int64_t first = part * half, count = part == 0 ? half : s.l - half;
    parts[part] = set().topk(
        {x_, w_.narrow(0, first, count).contiguous(), bias_.narrow(0, first, count).contiguous()},
        s.k);
    const int64_t width = parts[part].value.size(1);
    lists[part].narrow(1, 0, width).copy_(parts[part].value);
  }
  at::Tensor tau, cut;
  set().kth(lists, s.k, tau, cut);
  at::Tensor got = at::zeros_like(v_);
  for (int64_t part : {0, 1}) {
    const int64_t first = part * half, count = part == 0 ? half : s.l - half;
    const Codes codes = set().keep(parts[part], count, tau, cut, part * c);
    got.narrow(1, first, count).copy_(dense(codes));
  }
  at::Tensor want = at::zeros_like(v_);
  for (int64_t row = 0; row < s.b; ++row) {
    const std::vector<int32_t> order = order_of(row);
    for (int64_t p = 0; p < std::min(s.k, s.l); ++p) {
      const int32_t j = order[static_cast<size_t>(p)];
      want[row][j] = v_[row][j].clamp_min(0);
    }
  }
  EXPECT_TRUE(at::equal(got, want));
}

TEST_P(Kernels, DecodeAndRowGradientsMatchDenseAlgebra) {
  const Shape s = shape();
  const Codes codes = set().positive({x_, w_, bias_});
  const at::Tensor z = dense(codes), w_dec = at::randn({s.l, s.d}), g = at::randn({s.b, s.d});
  EXPECT_TRUE(at::allclose(set().decode(codes, w_dec), z.mm(w_dec), 1e-4, 1e-4));

  const LatentCodes by_latent = set().by_latent(codes);
  for (double l1 : {0.0, 0.7}) {
    RowGradients out{at::ones({s.l, s.d}), at::ones({s.l, s.d}), at::ones({s.l})};
    set().row_gradients({by_latent, x_, g, w_dec, l1}, out);
    const at::Tensor norm = w_dec.norm(2, {1}, true);
    const at::Tensor dz = (g.mm(w_dec.t()) + l1 * norm.t()) * z.gt(0);
    const at::Tensor d_dec = z.t().mm(g) + l1 * z.sum(0).unsqueeze(1) * w_dec / norm;
    EXPECT_TRUE(at::allclose(out.w_dec_ld - 1, d_dec, 1e-3, 1e-3));
    EXPECT_TRUE(at::allclose(out.w_enc_ld - 1, dz.t().mm(x_), 1e-3, 1e-3));
    EXPECT_TRUE(at::allclose(out.b_enc_l - 1, dz.sum(0), 1e-3, 1e-3));
  }
}

TEST_P(Kernels, AdamMatchesTheFormulaAndLeavesNonFiniteRowsAlone) {
  const Shape s = shape();
  for (bool unit : {false, true}) {
    at::Tensor w = at::randn({s.l, s.d}), g = at::randn({s.l, s.d});
    if (unit) w = w / w.norm(2, {1}, true);
    at::Tensor m = at::randn({s.l, s.d}), v = at::rand({s.l, s.d});
    g[0][s.d - 1] = std::numeric_limits<float>::quiet_NaN();
    const at::Tensor w0 = w.clone(), m0 = m.clone(), v0 = v.clone();
    const AdamArgs args{1e-2, .9, .999, 1e-8, .19, .002, 3.0, unit};
    EXPECT_EQ(set().adam_rows(w, g, m, v, args), 1);
    EXPECT_TRUE(at::equal(w[0], w0[0]));
    EXPECT_TRUE(at::equal(m[0], m0[0]));
    at::Tensor grad = g.to(at::kDouble);
    const at::Tensor wd = w0.to(at::kDouble);
    if (unit) grad = grad - (grad * wd).sum(1, true) * wd;
    grad = grad * 3.0;
    const at::Tensor m1 = .9 * m0 + .1 * grad, v1 = .999 * v0 + .001 * grad * grad;
    at::Tensor want = wd - 1e-2 / .19 * m1 / ((v1 / .002).sqrt() + 1e-8);
    if (unit) want = want / want.norm(2, {1}, true);
    if (s.l > 1) {
      EXPECT_TRUE(at::allclose(w.slice(0, 1).to(at::kDouble), want.slice(0, 1), 1e-4, 1e-5));
      EXPECT_TRUE(at::allclose(v.slice(0, 1).to(at::kDouble), v1.slice(0, 1), 1e-4, 1e-6));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    AllSets, Kernels,
    testing::Combine(testing::Range(0, 2),
                     testing::Values(Shape{1, 1, 1, 1}, Shape{5, 3, 7, 3}, Shape{33, 17, 1031, 32},
                                     Shape{300, 64, 130, 9}, Shape{3, 8, 5, 9},
                                     Shape{2, 4, 2000, 600})),
    [](const auto& row) {
      const Shape s = std::get<1>(row.param);
      return std::string(all_kernel_sets()[static_cast<size_t>(std::get<0>(row.param))].name) +
             "_" + std::to_string(s.b) + "x" + std::to_string(s.d) + "x" + std::to_string(s.l) +
             "k" + std::to_string(s.k);
    });

TEST(KernelsEdge, NanInARowReachesTheCodes) {
  for (const KernelSet& set : all_kernel_sets()) {
    at::Tensor x = at::ones({2, 4}), w = at::ones({700, 4}), bias = at::zeros({700});
    w[600][2] = std::numeric_limits<float>::quiet_NaN();
    const Candidates got = set.topk({x, w, bias}, 3);
    const at::Tensor tau = at::full({2}, -std::numeric_limits<float>::infinity());
    const at::Tensor cut = at::full({2}, kCutAll, at::kLong);
    EXPECT_TRUE(set.keep(got, 700, tau, cut, 0).value.isnan().any().item<bool>()) << set.name;
  }
}

// Pre-activations that overflowed: fewer than k real values must not leave rubbish behind.
TEST(KernelsEdge, InfinitiesAndNaNOfBothSigns) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const KernelSet& set : all_kernel_sets())
    for (float bad : {kInf, -kInf, nan, -nan}) {
      const at::Tensor x = at::ones({3, 4}), w = at::zeros({700, 4});
      const Candidates got = set.topk({x, w, at::full({700}, bad)}, 32);
      EXPECT_TRUE(got.latent.ge(0).logical_and(got.latent.lt(700)).all().item<bool>()) << set.name;
      const at::Tensor tau = at::full({3}, -kInf), cut = at::full({3}, kCutAll, at::kLong);
      const Codes codes = set.keep(got, 700, tau, cut, 0);
      EXPECT_EQ(codes.nnz() > 0, !(bad == -kInf)) << set.name << " " << bad;
    }
}

TEST(KernelsEdge, NoRows) {
  for (const KernelSet& set : all_kernel_sets()) {
    const at::Tensor x = at::empty({0, 4}), w = at::ones({7, 4}), bias = at::zeros({7});
    EXPECT_EQ(set.topk({x, w, bias}, 3).value.size(0), 0);
    const Codes codes = set.positive({x, w, bias});
    EXPECT_EQ(set.decode(codes, w).size(0), 0);
    EXPECT_EQ(set.by_latent(codes).latent_start.size(0), 8);
  }
}

TEST(Order, KeysSortByValueThenPosition) {
  EXPECT_GT(order_key(1.0f, 7), order_key(0.5f, 1));
  EXPECT_GT(order_key(1.0f, 3), order_key(1.0f, 4));
  EXPECT_EQ(order_key(-0.0f, 3), order_key(0.0f, 3));
  EXPECT_GT(order_key(0.0f, 9), order_key(-1.0f, 0));
  EXPECT_EQ(key_value(order_key(-2.5f, 11)), -2.5f);
  EXPECT_EQ(key_position(order_key(-2.5f, 11)), 11u);
}

}  // namespace
}  // namespace megadict
