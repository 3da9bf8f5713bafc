// The screened encode equals the exact one, on inputs that a screen may get wrong.
#include "kernels/fp32_tile.h"
#include "kernels/screen.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

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
    if (!tile().available()) GTEST_SKIP() << "this processor has no " << tile().name;
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

TEST(Fp32Tile, EveryVersionGivesTheSameBits) {
  constexpr int64_t d = 37, l = 25, rows = 50, capacity = l;
  const at::Tensor x = random({d, Fp32Block::kRows}, 1), w = random({l, d}, 2), b = random({l}, 3);
  std::vector<float> threshold(Fp32Block::kRows, -0.5f);
  threshold[3] = std::numeric_limits<float>::infinity();
  std::vector<std::vector<std::pair<int32_t, float>>> first;
  for (const Fp32Tile& tile : all_fp32_tiles()) {
    if (!tile.available()) continue;
    std::vector<ValueHit> hits(static_cast<size_t>(Fp32Block::kRows * capacity));
    std::vector<int32_t> count(Fp32Block::kRows, 0);
    Fp32Block block{x.const_data_ptr<float>(),
                    rows,
                    threshold.data(),
                    hits.data(),
                    count.data(),
                    capacity,
                    nullptr,
                    nullptr};
    tile.run(w.const_data_ptr<float>(), b.const_data_ptr<float>(), d, 0, l, block);
    std::vector<std::vector<std::pair<int32_t, float>>> lists;
    for (int64_t row = 0; row < Fp32Block::kRows; ++row) {
      auto& list = lists.emplace_back();
      for (int64_t i = 0; i < count[static_cast<size_t>(row)]; ++i) {
        const ValueHit& hit = hits[static_cast<size_t>(row * capacity + i)];
        list.emplace_back(hit.latent, hit.value);
      }
      EXPECT_EQ(list.empty(), row == 3 || row >= rows) << tile.name << " row " << row;
    }
    if (first.empty()) first = lists;
    EXPECT_EQ(lists, first) << tile.name;
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
      std::string name(std::get<0>(of.param).name);
      std::replace(name.begin(), name.end(), '-', '_');
      return name + "_" + std::to_string(s.b) + "x" + std::to_string(s.d) + "x" +
             std::to_string(s.l) + "k" + std::to_string(s.k);
    });

}  // namespace megadict
