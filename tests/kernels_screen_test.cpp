// The screened encode equals the exact one, on inputs that a screen may get wrong.
#include "kernels/fp32_tile.h"
#include "kernels/screen.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <set>

namespace megadict {

namespace {

at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator);
}

struct Input {
  at::Tensor x, w, bias;
  EncodeArgs args() const { return {x, w, bias}; }
};

// As codes are used: positive entries alone.
void expect_same(const Candidates& got, const Input& in, int64_t k) {
  Candidates want = kTensorKernels.topk(in.args(), k);
  ASSERT_EQ(got.value.sizes(), want.value.sizes());
  const at::Tensor exact = at::addmm(in.bias, in.x, in.w.t());
  for (int64_t row = 0; row < in.x.size(0); ++row) {
    const at::Tensor g = got.value[row].clamp_min(0), w = want.value[row].clamp_min(0);
    const double scale = in.x[row].norm().item<double>() * 1e-6 + 1e-30;
    if (!w.isfinite().all().item<bool>()) {
      EXPECT_FALSE(g.isfinite().all().item<bool>()) << "row " << row;
      continue;
    }
    EXPECT_TRUE(at::allclose(g, w, 1e-5, scale)) << "row " << row;
    std::set<int32_t> seen;
    for (int64_t i = 0; i < k && i < g.size(0); ++i) {
      if (g[i].item<float>() <= 0) continue;
      const auto latent = got.latent[row][i].item<int32_t>();
      EXPECT_TRUE(seen.insert(latent).second)
          << "row " << row << " has latent " << latent << " twice";
      EXPECT_NEAR(exact[row][latent].item<float>(), g[i].item<float>(),
                  1e-5 * std::abs(g[i].item<double>()) + 10 * scale);
    }
  }
}

struct Shape {
  int64_t b, l, d, k;
};

class ScreenOf : public testing::TestWithParam<std::tuple<ScreenTile, Shape>> {
 protected:
  const ScreenTile& tile() const { return std::get<0>(GetParam()); }
  const Shape& shape() const { return std::get<1>(GetParam()); }
  Input input() const {
    const Shape s = shape();
    return {random({s.b, s.d}, 1), random({s.l, s.d}, 2) * 0.3, random({s.l}, 3) * 0.1};
  }
  void SetUp() override {
    if (tile().isa > best_isa()) GTEST_SKIP() << "this processor has no " << name_of(tile().isa);
  }
};

}  // namespace

TEST_P(ScreenOf, EqualsTheExactTopk) {
  const Input in = input();
  Screen screen(in.w, tile());
  // The first call guesses nothing, the second from the first.
  for (int call = 0; call < 3; ++call)
    expect_same(screen.topk(in.args(), shape().k), in, shape().k);
  const ScreenStats stats = screen.take_stats();
  EXPECT_EQ(stats.rows, 3 * shape().b);
  EXPECT_EQ(stats.exact, 0);
}

TEST_P(ScreenOf, FindsRowsThatAGuessFromOthersMissed) {
  Input in = input();
  Screen screen(in.w, tile());
  screen.topk(in.args(), shape().k);
  // Shorter projections than those the guess came from.
  in.x = in.x + 5 * random({1, shape().d}, 9) * at::arange(shape().b).remainder(2).unsqueeze(1);
  in.bias = in.bias - 0.2;
  expect_same(screen.topk(in.args(), shape().k), in, shape().k);
}

TEST_P(ScreenOf, RowsThatCannotBeQuantised) {
  Input in = input();
  const int64_t b = shape().b;
  in.x[0].zero_();
  if (b > 1) in.x[1][0] = std::numeric_limits<float>::infinity();
  if (b > 2) in.x[2][shape().d - 1] = std::numeric_limits<float>::quiet_NaN();
  if (b > 3) in.x[3][0] = 1e6;
  if (b > 4) in.x[4] *= 1e-30;
  in.x.select(1, shape().d / 2).fill_(3.0);  // constant column
  Screen screen(in.w, tile());
  for (int call = 0; call < 2; ++call)
    expect_same(screen.topk(in.args(), shape().k), in, shape().k);
}

// One coordinate so large that int8 sees nothing of the others, which decide.
TEST_P(ScreenOf, OutliersThatHideTheRest) {
  const Shape s = shape();
  if (s.d < 3 || s.l < 2) return;
  Input in = input();
  in.w.select(1, 0).fill_(0.05);
  in.w[s.l - 1] = random({s.d}, 8).sign() / std::sqrt(static_cast<double>(s.d));
  in.w[s.l - 1][0] = 0;
  in.x = (0.49 * in.w[s.l - 1].sign()).repeat({s.b, 1});
  in.x.select(1, 0).fill_(127);
  in.w[0] = in.x[0] * 1e-3;  // an encoder row of the same kind
  Screen screen(in.w, tile());
  for (int call = 0; call < 2; ++call) expect_same(screen.topk(in.args(), s.k), in, s.k);
}

TEST_P(ScreenOf, FewerPositiveThanK) {
  Input in = input();
  in.bias = in.bias - 1.2 * in.x.norm(2, {1}).max().item<float>() *
                          in.w.norm(2, {1}).mean().item<float>() * 0.5;
  Screen screen(in.w, tile());
  for (int call = 0; call < 2; ++call)
    expect_same(screen.topk(in.args(), shape().k), in, shape().k);
}

TEST_P(ScreenOf, FollowsRowsThatChange) {
  Input in = input();
  Screen screen(in.w, tile());
  screen.topk(in.args(), shape().k);
  for (int64_t j = 0; j < shape().l; j += 3) {
    in.w[j] = random({shape().d}, static_cast<uint64_t>(100 + j));
    screen.refresh(j, in.w.const_data_ptr<float>() + j * shape().d);
  }
  expect_same(screen.topk(in.args(), shape().k), in, shape().k);
}

// A screen that does not know the weights is told so by the rows it compares.
TEST_P(ScreenOf, ComparedRowsTellMissesAndAreRepaired) {
  const Input in = input();
  Screen screen(in.w * 0 + 1e-3, tile());
  std::vector<int64_t> all(static_cast<size_t>(shape().b));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  expect_same(screen.topk(in.args(), shape().k, all), in, shape().k);
  const ScreenStats stats = screen.take_stats();
  EXPECT_EQ(stats.checked, shape().b);
}

// ---- the exact encode's product ----------------------------------------------------------------

using Lists = std::vector<std::vector<std::pair<int32_t, float>>>;

// The hits of one version over all latents but the first; lists have room for 3 and are emptied
// where they are full.
Lists hits_of(const Fp32Tile& tile, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b,
              int64_t rows, const std::vector<float>& threshold) {
  constexpr int32_t kCapacity = 3;
  std::vector<ValueHit> hits(static_cast<size_t>(Fp32Block::kRows * kCapacity));
  std::vector<int32_t> count(Fp32Block::kRows, 0);
  Lists lists(Fp32Block::kRows);
  Fp32Block block{x.const_data_ptr<float>(),
                  rows,
                  threshold.data(),
                  hits.data(),
                  count.data(),
                  kCapacity,
                  [](Fp32Block& full, int64_t row) {
                    auto& list = (*static_cast<Lists*>(full.context))[static_cast<size_t>(row)];
                    for (int32_t i = 0; i < full.count[row]; ++i) {
                      const ValueHit& hit = full.hits[row * full.capacity + i];
                      list.emplace_back(hit.latent, hit.value);
                    }
                    full.count[row] = 0;
                  },
                  &lists};
  tile.run(w.const_data_ptr<float>(), b.const_data_ptr<float>(), x.size(0), 1, w.size(0), block);
  for (int64_t row = 0; row < Fp32Block::kRows; ++row) block.full(block, row);
  return lists;
}

TEST(Fp32Tile, EveryVersionGivesTheBitsOfTheScalarOne) {
  std::vector<float> threshold(Fp32Block::kRows, -0.5f);
  threshold[0] = std::numeric_limits<float>::infinity();
  for (const int64_t d : {1, 37, 768})
    for (const int64_t l : {2, 7, 26})
      for (const int64_t rows : {1, 16, 17, 33, 50, 64}) {
        at::Tensor x = random({d, Fp32Block::kRows}, 1), w = random({l, d}, 2);
        if (l == 26) w[9][d / 2] = std::numeric_limits<float>::quiet_NaN();
        const at::Tensor b = random({l}, 3);
        const auto bits = [](const Lists& lists) {
          std::vector<std::vector<std::pair<int32_t, uint32_t>>> out;
          for (const auto& list : lists) {
            auto& row = out.emplace_back();
            for (const auto& [latent, value] : list)
              row.emplace_back(latent, std::isnan(value) ? 0 : std::bit_cast<uint32_t>(value));
          }
          return out;
        };
        const auto want = bits(hits_of(all_fp32_tiles().back(), x, w, b, rows, threshold));
        EXPECT_FALSE(rows > 16 && l == 26 && want[16].empty());
        for (const Fp32Tile& tile : all_fp32_tiles()) {
          if (tile.isa > best_isa()) continue;
          EXPECT_EQ(bits(hits_of(tile, x, w, b, rows, threshold)), want)
              << name_of(tile.isa) << " " << d << " " << l << " " << rows;
        }
      }
}

// Integer sums are exact; what passes the filter may differ only where rounding decides.
TEST(ScreenTile, EveryVersionGivesTheSumsOfTheScalarOne) {
  for (const int64_t d : {1, 64, 100, 768})
    for (const int64_t l : {1, 6, 25}) {
      const at::Tensor rows = random({l, d}, 2), b = random({l}, 3);
      QuantisedRows w(l, d);
      for (int64_t j = 0; j < l; ++j) w.set(j, rows.const_data_ptr<float>() + j * d);
      const at::Tensor x = at::randint(0, 256, {RowBlock::kRows * w.p}).to(at::kByte);
      const std::vector<float> one(RowBlock::kRows, 1.0f), low(RowBlock::kRows, -1e30f);
      const auto sums = [&](const ScreenTile& tile) {
        std::vector<Hit> hits(static_cast<size_t>(RowBlock::kRows * l));
        std::vector<int32_t> count(RowBlock::kRows, 0);
        RowBlock block{x.const_data_ptr<uint8_t>(),
                       one.data(),
                       one.data(),
                       low.data(),
                       1.0f,
                       hits.data(),
                       count.data(),
                       static_cast<int32_t>(l),
                       nullptr,
                       nullptr};
        tile.run(w, b.const_data_ptr<float>(), 0, l, block);
        std::vector<int32_t> out;
        for (const Hit& hit : hits) out.insert(out.end(), {hit.latent, hit.sum});
        out.insert(out.end(), count.begin(), count.end());
        return out;
      };
      for (const ScreenTile& tile : all_screen_tiles()) {
        if (tile.isa > best_isa()) continue;
        EXPECT_EQ(sums(tile), sums(all_screen_tiles().back())) << name_of(tile.isa) << d << l;
      }
    }
}

INSTANTIATE_TEST_SUITE_P(
    Tiles, ScreenOf,
    testing::Combine(testing::ValuesIn(all_screen_tiles().begin(), all_screen_tiles().end()),
                     testing::Values(Shape{1, 1, 1, 1}, Shape{5, 7, 3, 9}, Shape{65, 129, 17, 4},
                                     Shape{130, 1031, 64, 32}, Shape{200, 4099, 100, 8},
                                     Shape{3, 3000, 130, 600})),
    [](const auto& of) {
      const Shape& s = std::get<1>(of.param);
      const std::string name(name_of(std::get<0>(of.param).isa));
      return name + "_" + std::to_string(s.b) + "x" + std::to_string(s.d) + "x" +
             std::to_string(s.l) + "k" + std::to_string(s.k);
    });

}  // namespace megadict
