// Every operation of every kernel set against the obvious computation, on odd, empty and one-row
// shapes, with ties.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/fixed_point.h"
#include "kernels/kernel_set.h"
#include "kernels/order.h"
#include "kernels/tensor_kernels.h"

namespace megadict {
namespace {

// Every set, and the tensor operations in chunks of a few values, rows and entries.
std::vector<KernelSet> tested_sets() {
  std::vector<KernelSet> sets(all_kernel_sets().begin(), all_kernel_sets().end());
  sets.push_back(tensor_kernel_set<65536>("tensor_small_chunks"));
  sets.push_back(tensor_kernel_set<1>("tensor_single_values"));
  return sets;
}

struct Shape {
  int64_t b, d, l, k;
};

class Kernels : public testing::TestWithParam<std::tuple<int, Shape>> {
 protected:
  const KernelSet& set() const { return sets_[static_cast<size_t>(std::get<0>(GetParam()))]; }
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

  const std::vector<KernelSet> sets_ = tested_sets();
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

TEST_P(Kernels, AboveKeepsWhatPassesTheThreshold) {
  for (const float threshold : {0.0f, 2.0f, 4.5f, 1e9f}) {
    const Codes got = set().above({x_, w_, bias_}, threshold);
    const at::Tensor passes = v_.gt(threshold);
    EXPECT_TRUE(at::equal(dense(got), v_ * passes)) << threshold;
    EXPECT_EQ(got.nnz(), passes.sum().item<int64_t>()) << threshold;
  }
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

TEST_P(Kernels, ProductsAreThoseOfTheEntriesRows) {
  const Shape s = shape();
  const Codes codes = set().above({x_, w_, bias_}, 0);
  const at::Tensor got = set().products(codes, x_, w_), all = x_.mm(w_.t());
  ASSERT_EQ(got.size(0), codes.nnz());
  for (int64_t row = 0; row < s.b; ++row) {
    const int64_t begin = codes.row_start[row].item<int64_t>();
    const int64_t count = codes.row_start[row + 1].item<int64_t>() - begin;
    const at::Tensor latent = codes.latent.narrow(0, begin, count).to(at::kLong);
    EXPECT_TRUE(
        at::allclose(got.narrow(0, begin, count), all[row].index_select(0, latent), 1e-4, 1e-4));
  }
}

TEST_P(Kernels, DecodeAndRowGradientsMatchDenseAlgebra) {
  const Shape s = shape();
  const Codes codes = set().above({x_, w_, bias_}, 0);
  const at::Tensor z = dense(codes), w_dec = at::randn({s.l, s.d}), g = at::randn({s.b, s.d});
  EXPECT_TRUE(at::allclose(set().decode(codes, w_dec), z.mm(w_dec), 1e-4, 1e-4));

  const double up = std::exp2(40);
  const at::Tensor fixed = set().decode_fixed(codes, w_dec, up);
  EXPECT_TRUE(at::equal(fixed, kTensorKernels.decode_fixed(codes, w_dec, up)));
  EXPECT_TRUE(at::allclose(fixed.to(at::kDouble) / up, z.to(at::kDouble).mm(w_dec.to(at::kDouble)),
                           1e-9, 1e-9));

  const LatentCodes by_latent = set().by_latent(codes);
  const at::Tensor gain = at::rand({s.l}) + 0.5;
  const CodePath paths[] = {{}, {.decoder = false}, {.gain_l = gain, .bias = false}};
  for (const CodePath& path : paths)
    for (double l1 : {0.0, 0.7}) {
      const auto ones = [](at::IntArrayRef sizes) { return at::ones(sizes); };
      RowGradients out{ones({s.l, s.d}), ones({s.l, s.d}), ones({s.l}), ones({s.l})};
      set().row_gradients({by_latent, x_, g, w_dec, l1, path}, out);
      const at::Tensor norm = w_dec.norm(2, {1}, true);
      const at::Tensor dz = (g.mm(w_dec.t()) + l1 * norm.t()) * z.gt(0);
      const at::Tensor of_input = path.gain_l.defined() ? dz * gain : dz;
      const at::Tensor d_dec = z.t().mm(g) + l1 * z.sum(0).unsqueeze(1) * w_dec / norm;
      const double dec = path.decoder ? 1 : 0, bias = path.bias ? 1 : 0;
      EXPECT_TRUE(at::allclose(out.w_dec_ld - 1, d_dec * dec, 1e-3, 1e-3));
      EXPECT_TRUE(at::allclose(out.w_enc_ld - 1, of_input.t().mm(x_), 1e-3, 1e-3));
      EXPECT_TRUE(at::allclose(out.b_enc_l - 1, dz.sum(0) * bias, 1e-3, 1e-3));
      EXPECT_TRUE(at::allclose(out.input_l - 1, of_input.sum(0), 1e-3, 1e-3));
    }
}

// A row's step by the formulas of optimiser.h, in fp64: returns w, changes m and v.
at::Tensor stepped(const at::Tensor& w, at::Tensor g, at::Tensor& m, at::Tensor& v,
                   const at::Tensor& skipped, const UpdateArgs& args) {
  if (args.unit_rows) g = g - (g * w).sum(1, true) * w;
  g = g * args.gradient_scale;
  const double t = static_cast<double>(args.step);
  const double beta1 = args.kind == OptimiserKind::adam ? args.beta1 : 0.0;
  m = m * beta1 + g * (1 - beta1);
  v = v * at::pow(args.beta2, skipped + 1).unsqueeze(1) + g * g * (1 - args.beta2);
  at::Tensor out = args.kind == OptimiserKind::sign_sgd
                       ? w - args.lr * g.sign()
                       : w - args.lr * (m / (1 - std::pow(beta1, t))) /
                                 ((v / (1 - std::pow(args.beta2, t))).sqrt() + args.eps);
  return args.unit_rows ? out / out.norm(2, {1}, true) : out;
}

TEST_P(Kernels, UpdatesMatchTheFormulasAndLeaveNonFiniteRowsAlone) {
  const Shape s = shape();
  for (const Optimiser& optimiser : all_optimisers())
    for (bool unit : {false, true}) {
      at::Tensor w = at::randn({s.l, s.d}), g = at::randn({s.l, s.d});
      if (unit) w = w / w.norm(2, {1}, true);
      Parameter p{w, {}, {}};
      if (optimiser.first_moment) p.m = at::randn({s.l, s.d});
      if (optimiser.second_moment) p.v = at::rand({s.l, s.d});
      g[0][s.d - 1] = std::numeric_limits<float>::quiet_NaN();
      // Where lazy: rows of many ages, every fifth without gradient.
      at::Tensor skipped;
      if (optimiser.lazy) {
        skipped = at::arange(s.l, at::kLong);
        skipped.masked_fill_(at::arange(s.l).remainder(5).eq(4), -1);
      }
      const at::Tensor w0 = w.clone();
      at::Tensor m = p.m.defined() ? p.m.to(at::kDouble) : at::zeros({s.l, s.d}, at::kDouble);
      at::Tensor v = p.v.defined() ? p.v.to(at::kDouble) : at::zeros({s.l, s.d}, at::kDouble);
      const UpdateArgs args{optimiser.kind, 1e-2, .9, .99, 1e-8, 3, 3.0, unit};
      EXPECT_EQ(set().update_rows(p, g, skipped, args), 1) << optimiser.name;
      EXPECT_TRUE(at::equal(w[0], w0[0])) << optimiser.name;
      const at::Tensor ages = optimiser.lazy ? skipped : at::zeros({s.l}, at::kLong);
      at::Tensor want =
          stepped(w0.to(at::kDouble), g.to(at::kDouble), m, v, ages.to(at::kDouble), args);
      const at::Tensor left = ages.lt(0).unsqueeze(1);
      want = at::where(left, w0.to(at::kDouble), want);
      if (s.l == 1) continue;
      EXPECT_TRUE(at::allclose(w.slice(0, 1).to(at::kDouble), want.slice(0, 1), 1e-4, 1e-5))
          << optimiser.name << " " << unit;
      if (p.v.defined()) {
        const at::Tensor got = p.v.to(at::kDouble).masked_fill(left, 0).slice(0, 1);
        EXPECT_TRUE(at::allclose(got, v.masked_fill(left, 0).slice(0, 1), 1e-4, 1e-6));
      }
    }
}

// One pass over the latents equals gradient tensors and then the update. The second source speaks
// of every third latent, the third of none (a shard without dead latents).
TEST_P(Kernels, RowPassEqualsGradientsThenUpdate) {
  const Shape s = shape();
  const Codes codes = set().above({x_, w_, bias_}, 0);
  const LatentCodes by_latent = set().by_latent(codes);
  const at::Tensor some = at::arange(0, s.l, 3, at::kLong);
  const Codes few = set().above({x_, w_.index_select(0, some), bias_.index_select(0, some)}, 0);
  const LatentCodes few_by_latent = set().by_latent(few);
  const at::Tensor none = some.narrow(0, 0, 0);
  const LatentCodes no_codes =
      set().by_latent(set().above({x_, w_.index_select(0, none), bias_.index_select(0, none)}, 0));
  at::Tensor g = at::randn({s.b, s.d}), g2 = at::randn({s.b, s.d});
  const CodePath gates{.decoder = false},
      magnitudes{.gain_l = at::rand({s.l}) + 0.5, .bias = false};
  for (const Optimiser& optimiser : all_optimisers())
    for (const bool tied : {false, true}) {
      const auto latent_rows = [&] {
        at::manual_seed(3);
        const auto parameter = [&](at::Tensor w) {
          Parameter out{std::move(w), {}, {}};
          if (optimiser.first_moment) out.m = at::randn(out.w.sizes());
          if (optimiser.second_moment) out.v = at::rand(out.w.sizes());
          return out;
        };
        const at::Tensor w_dec = at::randn({s.l, s.d});
        LatentRows rows;
        rows.w_enc = parameter(at::randn({s.l, s.d}));
        rows.w_dec = tied ? rows.w_enc : parameter(w_dec / w_dec.norm(2, {1}, true));
        rows.b_enc = parameter(at::randn({s.l}));
        if (optimiser.lazy) rows.last_step_l = at::arange(s.l, at::kLong).remainder(7);
        return rows;
      };
      LatentRows rows = latent_rows(), want = latent_rows();
      const UpdateArgs args{optimiser.kind, 1e-2, .9, .99, 1e-8, 9, 1, !tied};
      const std::vector<GradientSource> sources = {{by_latent, x_, g, 1, 0.3},
                                                   {few_by_latent, x_, g2, 0.25, 0, some},
                                                   {no_codes, x_, g2, 0.25, 0, none},
                                                   {by_latent, x_, g2, 1, 0.1, {}, gates},
                                                   {by_latent, x_, g, 1, 0, {}, magnitudes}};
      const RowPassResult result = set().row_pass(sources, rows, args);
      const RowPassResult reference = kTensorKernels.row_pass(sources, want, args);
      EXPECT_EQ(result.skipped, 0);
      EXPECT_NEAR(result.square, reference.square, 1e-4 * reference.square);
      EXPECT_TRUE(at::allclose(result.b_dec_d, reference.b_dec_d, 1e-3, 1e-3)) << optimiser.name;
      UpdateArgs fixed = args;
      fixed.b_dec_up = std::exp2(30);
      LatentRows again = latent_rows();
      const at::Tensor in_units = set().row_pass(sources, again, fixed).b_dec_d;
      EXPECT_EQ(in_units.scalar_type(), at::kLong);
      EXPECT_TRUE(at::equal(again.w_dec.w, rows.w_dec.w)) << optimiser.name;
      EXPECT_TRUE(
          at::allclose(in_units.to(at::kDouble) / fixed.b_dec_up, result.b_dec_d, 1e-6, 1e-5))
          << optimiser.name;
      // A sign may differ where a gradient is nearly zero.
      const double share = optimiser.kind == OptimiserKind::sign_sgd ? 0.01 : 0;
      for (const auto& [got, expected] : {std::pair{rows.w_enc, want.w_enc},
                                          {rows.w_dec, want.w_dec},
                                          {rows.b_enc, want.b_enc}}) {
        const at::Tensor off = at::isclose(got.w, expected.w, 1e-3, 1e-4).logical_not();
        EXPECT_LE(off.to(at::kDouble).mean().item<double>(), share) << optimiser.name << tied;
        if (got.v.defined()) {
          EXPECT_TRUE(at::allclose(got.v, expected.v, 1e-3, 1e-3)) << optimiser.name << tied;
        }
      }
      if (optimiser.lazy) {
        EXPECT_TRUE(at::equal(rows.last_step_l, want.last_step_l));
      }
    }
}

TEST_P(Kernels, RowPassLeavesALatentWithoutFiniteGradientAlone) {
  const Shape s = shape();
  const Codes codes = set().above({x_, w_, bias_}, 0);
  if (codes.nnz() == 0) return;
  const LatentCodes by_latent = set().by_latent(codes);
  at::Tensor g = at::randn({s.b, s.d});
  g.fill_(std::numeric_limits<float>::infinity());
  const at::Tensor w = at::randn({s.l, s.d});
  LatentRows rows{{w.clone(), {}, {}}, {w.clone(), {}, {}}, {at::zeros({s.l}), {}, {}}, {}};
  const UpdateArgs args{OptimiserKind::sign_sgd, 1e-2, 0, 0, 0, 1, 1, false};
  const std::vector<GradientSource> sources = {{by_latent, x_, g, 1, 0}};
  EXPECT_GT(set().row_pass(sources, rows, args).skipped, 0);
  EXPECT_TRUE(at::equal(rows.w_enc.w, w));
  EXPECT_TRUE(at::equal(rows.w_dec.w, w));
}

std::string name_of_case(const testing::TestParamInfo<std::tuple<int, Shape>>& row) {
  const auto& [set, s] = row.param;
  return std::string(tested_sets()[static_cast<size_t>(set)].name) + "_" + std::to_string(s.b) +
         "x" + std::to_string(s.d) + "x" + std::to_string(s.l) + "k" + std::to_string(s.k);
}

constexpr Shape kSmall[] = {{1, 1, 1, 1}, {5, 3, 7, 3}, {3, 8, 5, 9}};
constexpr Shape kLarge[] = {{33, 17, 1031, 32}, {300, 64, 130, 9}, {2, 4, 2000, 600}};

INSTANTIATE_TEST_SUITE_P(Small, Kernels,
                         testing::Combine(testing::Range(0, 4), testing::ValuesIn(kSmall)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Large, Kernels,
                         testing::Combine(testing::Range(0, 3), testing::ValuesIn(kLarge)),
                         name_of_case);

TEST(KernelsEdge, NanInARowReachesTheCodes) {
  for (const KernelSet& set : tested_sets()) {
    at::Tensor x = at::ones({2, 4}), w = at::ones({700, 4}), bias = at::zeros({700});
    w[600][2] = std::numeric_limits<float>::quiet_NaN();
    const Candidates got = set.topk({x, w, bias}, 3);
    const at::Tensor tau = at::full({2}, -std::numeric_limits<float>::infinity());
    const at::Tensor cut = at::full({2}, kCutAll, at::kLong);
    EXPECT_TRUE(set.keep(got, 700, tau, cut, 0).value.isnan().any().item<bool>()) << set.name;
    EXPECT_EQ(set.above({x, w, bias}, 3).nnz(), 2 * 699 + 2) << set.name;
  }
}

// Pre-activations that overflowed: fewer than k real values must not leave rubbish behind.
TEST(KernelsEdge, InfinitiesAndNaNOfBothSigns) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const KernelSet& set : tested_sets())
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
  for (const KernelSet& set : tested_sets()) {
    const at::Tensor x = at::empty({0, 4}), w = at::ones({7, 4}), bias = at::zeros({7});
    EXPECT_EQ(set.topk({x, w, bias}, 3).value.size(0), 0);
    const Codes codes = set.above({x, w, bias}, 0);
    EXPECT_EQ(set.decode(codes, w).size(0), 0);
    EXPECT_EQ(set.by_latent(codes).latent_start.size(0), 8);
  }
}

TEST(FixedPoint, SumsDoNotOverflowAndDoNotDependOnOrder) {
  for (double largest : {1e-30, 0.7, 1.0, 3.0, 1e12})
    for (int64_t terms : {int64_t{1}, int64_t{3}, int64_t{4096}, int64_t{1} << 30}) {
      const FixedPoint unit = fixed_point(largest, terms);
      EXPECT_EQ(unit.up * unit.down, 1.0);
      EXPECT_LE(largest * unit.up, std::exp2(51));
      EXPECT_LE(largest * unit.up * static_cast<double>(terms), std::exp2(62));
      EXPECT_GE(largest * unit.up * 4,
                std::min(std::exp2(51), std::exp2(62) / static_cast<double>(terms)));
    }
  EXPECT_EQ(fixed_point(0, 5).up, 1);
  for (double x : {0.0, 0.5, 1.5, -0.5, -2.5, 1e15 + 0.25, -2251799813685247.5})
    EXPECT_EQ(rounded(x), static_cast<int64_t>(std::nearbyint(x))) << x;
}

TEST(FixedPoint, KnowsHowMuchTheTermsAddUpTo) {
  for (double largest : {1e-30, 0.7, 3.0, 1e12})
    for (double terms : {1.0, 2.5, 4096.0, 3e7}) {
      const FixedPoint unit = fixed_point_within(largest, largest * terms);
      EXPECT_LE(largest * unit.up, std::exp2(51));
      EXPECT_LE(largest * terms * unit.up, std::exp2(62));
      EXPECT_GE(largest * unit.up * 4, std::min(std::exp2(51), std::exp2(62) / terms));
    }
  EXPECT_EQ(fixed_point_within(0, 0).up, 1);
}

TEST(FixedPoint, LargestMagnitudeSeesWhatIsNotFinite) {
  at::Tensor x = at::zeros({3, 700000});
  EXPECT_EQ(largest_magnitude(x.narrow(0, 0, 0)), 0);
  x[2][5] = -4;
  EXPECT_EQ(largest_magnitude(x), 4);
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    x[1][699999] = bad;
    EXPECT_EQ(largest_magnitude(x), std::numeric_limits<double>::infinity());
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
