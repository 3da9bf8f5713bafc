// Every version of the row loops against the scalar one, on widths that fill no vector, one and
// several, and the choice of a version.
#include "kernels/vector_ops.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/fp32_tile.h"
#include "kernels/screen_tile.h"

namespace megadict {
namespace {

constexpr int64_t kWidths[] = {1, 3, 15, 16, 17, 31, 64, 100, 511, 513, 768, 1030};

at::Tensor random(int64_t d, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn({d}, generator);
}

const float* in(const at::Tensor& t) {
  return t.const_data_ptr<float>();
}

// That this processor has.
std::vector<Isa> isas_here() {
  std::vector<Isa> out;
  for (const IsaFact& fact : all_isas())
    if (fact.isa <= best_isa()) out.push_back(fact.isa);
  return out;
}

class VectorOpsOf : public testing::TestWithParam<Isa> {
 protected:
  const VectorOps& ops() const { return best_vector_ops(GetParam()); }
  const VectorOps& scalar() const { return all_vector_ops().back(); }
};

// Products are rounded once or twice: |error| of a sum is some eps of its absolute terms.
void expect_close(const at::Tensor& got, const at::Tensor& want, const char* what, int64_t d) {
  EXPECT_TRUE(at::allclose(got, want, 1e-5, 1e-6)) << what << " " << d;
}

TEST_P(VectorOpsOf, SumsAndRows) {
  for (const int64_t d : kWidths) {
    const at::Tensor a = random(d, 1), b = random(d, 2);
    EXPECT_NEAR(ops().dot(in(a), in(b), d), scalar().dot(in(a), in(b), d),
                1e-6 * (a * b).abs().sum().item<double>());
    const auto after = [&](auto&& change) {
      at::Tensor y = random(d, 3);
      change(y.mutable_data_ptr<float>());
      return y;
    };
    const at::Tensor c = random(d, 4), e = random(d, 5);
    const float factor[4] = {0.5f, -2.25f, 1e-3f, 3.0f};
    const float* four[4] = {in(a), in(b), in(c), in(e)};
    expect_close(after([&](float* y) { ops().add_scaled(y, -1.7f, in(a), d); }),
                 after([&](float* y) { scalar().add_scaled(y, -1.7f, in(a), d); }), "add", d);
    expect_close(after([&](float* y) { ops().add_scaled4(y, factor, four, d); }),
                 after([&](float* y) { scalar().add_scaled4(y, factor, four, d); }), "add4", d);
  }
}

TEST_P(VectorOpsOf, OptimiserRows) {
  const UpdateArgs args{OptimiserKind::adam, 1e-2, .9, .99, 1e-8, 3, 3.0, false};
  const RowUpdate update = row_update(args);
  struct Row {
    at::Tensor w, m, v;
    explicit Row(int64_t d) : w(random(d, 1)), m(random(d, 2)), v(random(d, 3).abs()) {}
    float* of(at::Tensor& t) const { return t.mutable_data_ptr<float>(); }
  };
  for (const int64_t d : kWidths) {
    const at::Tensor g = random(d, 4);
    const auto after = [&](const VectorOps& version, int kind) {
      Row r(d);
      float *w = r.of(r.w), *m = r.of(r.m), *v = r.of(r.v);
      if (kind == 0) version.adam_row(w, in(g), m, v, d, 0.3f, update);
      if (kind == 1) version.adam_b1_0_row(w, in(g), v, d, 0.3f, 0.97f, update);
      if (kind == 2) version.sign_row(w, in(g), d, 0.3f, 0.125f);
      return at::cat({r.w, r.m, r.v});
    };
    for (const int kind : {0, 1, 2})
      expect_close(after(ops(), kind), after(scalar(), kind), "kind", kind * 10000 + d);
  }
}

TEST_P(VectorOpsOf, Quantising) {
  for (const int64_t d : kWidths) {
    at::Tensor x = random(d, 1);
    const float largest = ops().largest_magnitude(in(x), d);
    EXPECT_EQ(largest, scalar().largest_magnitude(in(x), d));
    EXPECT_EQ(largest, x.abs().max().item<float>());
    std::vector<int8_t> got(static_cast<size_t>(d)), want(got);
    // Halves, where rounding shows.
    const at::Tensor halves = (x * 20).round() / 2;
    EXPECT_EQ(ops().quantise(in(halves), d, 1.0f, got.data()),
              scalar().quantise(in(halves), d, 1.0f, want.data()));
    EXPECT_EQ(got, want) << d;
    for (const float scale : {127.0f, 0.5f, 0.2f, 1e-3f})
      EXPECT_EQ(ops().mostly_lost(in(x), d, scale), scalar().mostly_lost(in(x), d, scale)) << d;
    std::vector<uint16_t> bf16(static_cast<size_t>(d)), scalar_bf16(bf16);
    at::Tensor ties = x.clone();
    ties.view(at::kInt).bitwise_and_(~0x7FFF);  // halfway between two numbers, or one of them
    for (const at::Tensor& of : {x, ties}) {
      const Fourths a = ops().to_bf16(in(of), d, 0.5f, bf16.data()),
                    b = scalar().to_bf16(in(of), d, 0.5f, scalar_bf16.data());
      EXPECT_EQ(bf16, scalar_bf16) << d;
      EXPECT_FLOAT_EQ(a.values, b.values) << d;
      EXPECT_FLOAT_EQ(a.powers, b.powers) << d;
      EXPECT_NEAR(a.values, (of * 0.5).pow(4).sum().item<float>(), 1e-4 * a.values) << d;
      EXPECT_LE(a.powers, a.values);
      const at::Tensor rounded = of.to(at::kBFloat16);
      for (int64_t i = 0; i < d; ++i)
        EXPECT_EQ(bf16[static_cast<size_t>(i)],
                  static_cast<const at::BFloat16*>(rounded.const_data_ptr())[i].x)
            << i;
    }
    for (const float bad :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
      for (const int64_t at : {int64_t{0}, d / 2, d - 1}) {
        at::Tensor with = x.clone();
        with[at] = bad;
        EXPECT_FALSE(std::isfinite(ops().largest_magnitude(in(with), d))) << d << " " << at;
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, VectorOpsOf, testing::ValuesIn(isas_here()),
                         [](const auto& row) { return std::string(name_of(row.param)); });

// ---- the choice --------------------------------------------------------------------------------

TEST(Choice, EveryTableRunsFromBestToScalar) {
  const auto check = [](const auto& versions, const auto& best) {
    EXPECT_EQ(versions.back().isa, Isa::scalar);
    for (size_t i = 1; i < versions.size(); ++i) EXPECT_GT(versions[i - 1].isa, versions[i].isa);
    for (const IsaFact& fact : all_isas()) {
      EXPECT_LE(best(fact.isa).isa, fact.isa);
      for (const auto& version : versions)
        if (version.isa <= fact.isa) {
          EXPECT_LE(version.isa, best(fact.isa).isa);
        }
    }
  };
  check(all_fp32_tiles(), best_fp32_tile);
  for (const ScreenProduct& product : all_screen_products())
    check(all_screen_tiles(product.kind),
          [&](Isa isa) -> const ScreenTile& { return best_screen_tile(product.kind, isa); });
  check(all_vector_ops(), best_vector_ops);
}

TEST(Choice, FollowsWhatIsAskedFor) {
  for (const IsaFact& fact : all_isas()) {
    EXPECT_EQ(isa_named(fact.name), fact.isa);
    if (fact.isa > best_isa()) {
      EXPECT_THROW(use_isa(fact.isa), Error);
      continue;
    }
    use_isa(fact.isa);
    EXPECT_EQ(isa_in_use(), fact.isa);
    EXPECT_EQ(&best_fp32_tile(), &best_fp32_tile(fact.isa));
    // Bits that differ between a chain of multiply-adds and products rounded first tell which runs.
    const at::Tensor a = random(768, 1), b = random(768, 2);
    EXPECT_EQ(dot(in(a), in(b), 768), best_vector_ops(fact.isa).dot(in(a), in(b), 768));
  }
  use_isa(best_isa());
  EXPECT_THROW(isa_named("sse9"), Error);
}

}  // namespace
}  // namespace megadict
