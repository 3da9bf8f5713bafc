// The screened encode equals the exact one, on inputs that a screen may get wrong.
#include "kernels/screen.h"

#include "support/screen_inputs.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

namespace megadict {

namespace {

using test::every_tile;
using test::Input;
using test::NamedTile;
using test::random;

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

class ScreenOf : public testing::TestWithParam<std::tuple<NamedTile, Shape>> {
 protected:
  const ScreenTile& tile() const { return std::get<0>(GetParam()).tile; }
  const Shape& shape() const { return std::get<1>(GetParam()); }
  Input input() const {
    const Shape s = shape();
    return {random({s.b, s.d}, 1), random({s.l, s.d}, 2) * 0.3, random({s.l}, 3) * 0.1};
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

// Two large dims are kept apart; so large in one row that fp32 rounds them coarsely, and nearly all
// that there is of two latents.
TEST_P(ScreenOf, LargeDimsKeptApart) {
  const int64_t d = shape().d;
  if (d < 64) return;
  Input in = input();
  in.x.select(1, 7).mul_(30);
  in.x.select(1, d - 3).mul_(40);
  Screen screen(in.w, tile());
  for (int call = 0; call < 2; ++call) {
    expect_same(screen.topk(in.args(), shape().k), in, shape().k);
    EXPECT_GE(screen.apart().size(), 2u);
    in.x[0][7] = 1e6;
    in.w[shape().l / 2] *= 1e-3;
    in.w[shape().l / 2][7] = 1;
    in.w[1].zero_();
    in.w[1][d - 3] = -1;
    screen.refresh(in.w);
  }
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

// A NaN that only the bias has is found, as the exact encode finds it.
TEST_P(ScreenOf, ABiasThatIsNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Input in = input();
    in.bias[shape().l / 2] = bad;
    Screen screen(in.w, tile());
    const Candidates got = screen.topk(in.args(), shape().k);
    const Candidates want = kCpuKernels.topk(in.args(), shape().k);
    EXPECT_TRUE(at::equal(got.value.isnan(), want.value.isnan()));
    EXPECT_TRUE(at::equal(got.value.select(1, 0).isfinite(), want.value.select(1, 0).isfinite()));
    EXPECT_FALSE(got.value.select(1, 0).isfinite().any().item<bool>());
  }
}

TEST_P(ScreenOf, RowsOfTheEncoderThatAreNotFinite) {
  Input in = input();
  in.w[shape().l / 2][0] = std::numeric_limits<float>::quiet_NaN();
  in.x[0].zero_();
  Screen screen(in.w, tile());
  for (int call = 0; call < 2; ++call) {
    const Candidates got = screen.topk(in.args(), shape().k);
    EXPECT_TRUE(got.value.select(1, 0).isnan().all().item<bool>());
  }
}

// The same where dims are kept apart: what is apart may not hide it.
TEST_P(ScreenOf, RowsThatAreNotFiniteBesideDimsKeptApart) {
  const int64_t d = shape().d;
  if (d < 64) return;
  Input in = input();
  in.x.select(1, 7).mul_(30);
  Screen screen(in.w, tile());
  screen.topk(in.args(), shape().k);
  ASSERT_FALSE(screen.apart().empty());
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    in.w[shape().l / 2][7] = bad;
    screen.refresh(in.w);
    const Candidates got = screen.topk(in.args(), shape().k);
    const Candidates want = kCpuKernels.topk(in.args(), shape().k);
    EXPECT_TRUE(at::equal(got.value.select(1, 0).isfinite(), want.value.select(1, 0).isfinite()));
  }
}

// Encoder rows that it was not told of stand for errors outside any window.
TEST_P(ScreenOf, MissesWithTheWidestWindowEndTheScreening) {
  Input in = input();
  if (shape().l < 8) return;
  Screen screen(in.w, tile());
  screen.topk(in.args(), shape().k);
  screen.take_stats();
  screen.remember({Screen::kWidestWindow, 0});
  in.w[shape().l - 1].copy_(in.x[0] * 10);
  const std::vector<int64_t> rows = {0};
  screen.topk(in.args(), shape().k, rows);
  const ScreenStats stats = screen.take_stats();
  EXPECT_GT(stats.missed, 0);
  EXPECT_TRUE(stats.given_up);
  expect_same(screen.topk(in.args(), shape().k), in, shape().k);
  EXPECT_FALSE(screen.take_stats().given_up);  // said once
}

// above() has the values of topk(), bit for bit, and misses none of them.
TEST_P(ScreenOf, AboveAgreesWithTopk) {
  const Input in = input();
  Screen screen(in.w, tile());
  const Candidates best = screen.topk(in.args(), shape().k);
  const int64_t width = best.value.size(1);
  const auto last = best.value.select(1, width - 1).max().item<float>();
  if (last <= 0) return;
  const Codes codes = screen.above(in.args(), last);
  const auto* start = codes.row_start.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < shape().b; ++row) {
    std::set<std::pair<int32_t, float>> listed, found;
    for (int64_t i = 0; i < width; ++i)
      if (best.value[row][i].item<float>() > last)
        listed.emplace(best.latent[row][i].item<int32_t>(), best.value[row][i].item<float>());
    for (int64_t i = start[row]; i < start[row + 1]; ++i)
      found.emplace(codes.latent[i].item<int32_t>(), codes.value[i].item<float>());
    EXPECT_EQ(found, listed) << row;
  }
}

// Two dims 30 times as large as the others cost candidates, unless they are kept apart.
TEST(ScreenOutliers, KeptApartTheyCostNoCandidates) {
  for (const ScreenProduct& product : all_screen_products()) {
    Input plain{random({256, 128}, 1), random({4000, 128}, 2), random({4000}, 3) * 0.1};
    Input in{plain.x.clone(), plain.w, plain.bias};
    in.x.select(1, 7).mul_(30);
    in.x.select(1, 90).mul_(30);
    const auto rescored = [&](const Input& input, size_t apart) {
      Screen screen(input.w, product.kind);
      expect_same(screen.topk(input.args(), 16), input, 16);
      EXPECT_EQ(screen.apart().size(), apart);
      expect_same(screen.topk(input.args(), 16), input, 16);
      const ScreenStats stats = screen.take_stats();
      EXPECT_EQ(stats.exact, 0) << product.name;
      return static_cast<double>(stats.rescored) / static_cast<double>(stats.rows);
    };
    EXPECT_LT(rescored(in, 2), 1.1 * rescored(plain, 0)) << product.name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Tiles, ScreenOf,
    testing::Combine(testing::ValuesIn(every_tile()),
                     testing::Values(Shape{1, 1, 1, 1}, Shape{5, 7, 3, 9}, Shape{65, 129, 17, 4},
                                     Shape{130, 1031, 64, 32}, Shape{200, 2051, 100, 8},
                                     Shape{3, 3000, 130, 600})),
    [](const auto& of) {
      const Shape& s = std::get<1>(of.param);
      return std::get<0>(of.param).name + "_" + std::to_string(s.b) + "x" + std::to_string(s.d) +
             "x" + std::to_string(s.l) + "k" + std::to_string(s.k);
    });

}  // namespace megadict
