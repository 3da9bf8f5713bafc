// The screened encode equals the exact one, on inputs that a screen may get wrong.
#include "kernels/screen.h"

#include "kernels/fp32_tile.h"
#include "kernels/screen_outliers.h"
#include "kernels/vector_ops.h"
#include "support/emulated_amx.h"

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

struct NamedTile {
  std::string name;
  ScreenTile tile;
};

// Those that this processor has, and AMX emulated.
std::vector<NamedTile> tiles_of(ScreenKind kind) {
  std::vector<NamedTile> out;
  const std::string element(screen_product(kind).element);
  for (const ScreenTile& tile : all_screen_tiles(kind))
    if (tile.isa <= best_isa())
      out.push_back({element + "_" + std::string(name_of(tile.isa)), tile});
  out.push_back({element + "_emulated_amx", kind == ScreenKind::int8
                                                ? emulated_amx_tile<Int8Product>()
                                                : emulated_amx_tile<Bf16Product>()});
  return out;
}

std::vector<NamedTile> every_tile() {
  std::vector<NamedTile> out;
  for (const ScreenProduct& product : all_screen_products())
    for (NamedTile& tile : tiles_of(product.kind)) out.push_back(std::move(tile));
  return out;
}

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

// All rows of x against latents [first, l): as lists by row.
Lists hits_of(const ScreenTile& tile, const ScreenRows& w, const at::Tensor& x, const at::Tensor& b,
              int64_t first, float threshold) {
  constexpr int32_t kCapacity = 5;
  const at::Tensor apart = random({static_cast<int64_t>(w.apart.size()), RowBlock::kRows}, 5);
  const std::vector<float> ones(RowBlock::kRows, 1.0f), thresholds(RowBlock::kRows, threshold);
  std::vector<Hit> hits(static_cast<size_t>(RowBlock::kRows * kCapacity));
  std::vector<int32_t> count(RowBlock::kRows, 0);
  Lists lists(RowBlock::kRows);
  RowBlock block{x.const_data_ptr<uint8_t>(),
                 ones.data(),
                 ones.data(),
                 thresholds.data(),
                 apart.const_data_ptr<float>(),
                 1.0f,
                 hits.data(),
                 count.data(),
                 kCapacity,
                 [](RowBlock& full, int64_t row) {
                   auto& list = (*static_cast<Lists*>(full.context))[static_cast<size_t>(row)];
                   for (int32_t i = 0; i < full.count[row]; ++i) {
                     const Hit& hit = full.hits[row * full.capacity + i];
                     list.emplace_back(hit.latent, std::bit_cast<float>(hit.sum));
                   }
                   full.count[row] = 0;
                 },
                 &lists};
  tile.run(w, b.const_data_ptr<float>(), first, w.rows, block);
  for (int64_t row = 0; row < RowBlock::kRows; ++row) block.full(block, row);
  return lists;
}

// Rows of x as a Screen packs them.
at::Tensor packed_rows(const ScreenProduct& product, const at::Tensor& x) {
  const int64_t p = product.padded(x.size(1));
  at::Tensor q = at::zeros({RowBlock::kRows, p}, at::kByte);
  for (int64_t row = 0; row < RowBlock::kRows; ++row)
    product.pack(x.const_data_ptr<float>() + row * x.size(1), x.size(1),
                 q.mutable_data_ptr<uint8_t>() + row * p);
  return q.bitwise_xor(product.offset)
      .view({RowBlock::kRows, p / 4, 4})
      .transpose(0, 1)
      .contiguous();
}

// Integer sums are exact; fp32 ones, and so what passes the filter, may differ where rounding
// decides.
TEST(ScreenTile, EveryVersionGivesTheSumsOfTheScalarOne) {
  for (const ScreenProduct& product : all_screen_products())
    for (const int64_t d : {1, 64, 100, 768})
      for (const int64_t l : {2, 7, 26, 34, 100})
        for (const float threshold : {-1e30f, 0.0f}) {
          const at::Tensor rows = random({l, d}, 2), b = random({l}, 3);
          const at::Tensor x = packed_rows(product, random({RowBlock::kRows, d}, 4));
          ScreenRows w(product, l, d);
          if (d == 100) w.keep_apart({3, 99});
          for (int64_t j = 0; j < l; ++j) w.set(j, rows.const_data_ptr<float>() + j * d);
          const Lists want = hits_of(all_screen_tiles(product.kind).back(), w, x, b, 1, threshold);
          if (threshold < 0) {
            EXPECT_EQ(want[63].size(), static_cast<size_t>(l - 1));
          }
          for (const NamedTile& version : tiles_of(product.kind)) {
            if (version.tile.isa > best_isa()) continue;
            const Lists got = hits_of(version.tile, w, x, b, 1, threshold);
            const std::string where = version.name + " " + std::to_string(d) + " " +
                                      std::to_string(l) + " " + std::to_string(threshold);
            EXPECT_EQ(EmulatedAmx::configured, 0);
            if (product.kind == ScreenKind::int8 || threshold < 0) {
              for (size_t row = 0; row < want.size(); ++row) {
                ASSERT_EQ(got[row].size(), want[row].size()) << where;
                for (size_t i = 0; i < want[row].size(); ++i) {
                  EXPECT_EQ(got[row][i].first, want[row][i].first) << where;
                  if (product.kind == ScreenKind::int8) {
                    EXPECT_EQ(std::bit_cast<int32_t>(got[row][i].second),
                              std::bit_cast<int32_t>(want[row][i].second))
                        << where;
                  } else {
                    EXPECT_NEAR(got[row][i].second, want[row][i].second,
                                1e-5 * std::sqrt(static_cast<double>(d)))
                        << where;
                  }
                }
              }
            }
          }
        }
}

// What the margin is made of: the error of many pairs beside the variance that is claimed for it.
TEST(ScreenProduct, ErrorsAreAsLargeAsTheHeaderSays) {
  for (const ScreenProduct& product : all_screen_products())
    for (const int64_t d : {64, 768}) {
      const at::Tensor x = random({RowBlock::kRows, d}, 4),
                       rows = random({200, d}, 2) + 0.05 * x[0];
      ScreenRows w(product, 200, d);
      for (int64_t j = 0; j < 200; ++j) w.set(j, rows.const_data_ptr<float>() + j * d);
      const Lists lists = hits_of(all_screen_tiles(product.kind).back(), w, packed_rows(product, x),
                                  at::zeros({200}), 0, -1e30f);
      const at::Tensor exact = x.to(at::kDouble).matmul(rows.to(at::kDouble).t());
      std::vector<uint8_t> scratch(static_cast<size_t>(w.p));
      double square = 0;
      for (int64_t row = 0; row < RowBlock::kRows; ++row) {
        const PackedRow facts =
            product.pack(x.const_data_ptr<float>() + row * d, d, scratch.data());
        for (const auto& [j, sum] : lists[static_cast<size_t>(row)]) {
          const double value =
              facts.unit * product.value(std::bit_cast<int32_t>(sum), w.step[j], w.shift[j]);
          const double a = static_cast<double>(facts.step) * w.size[j],
                       b = static_cast<double>(w.step[j]) * facts.size,
                       sigma = std::sqrt((a * a + b * b) / 12);
          const double error = (value - exact[row][j].item<double>()) / sigma;
          EXPECT_LT(std::abs(error), Screen::kWindow) << product.name << " " << row << " " << j;
          square += error * error;
        }
      }
      square /= static_cast<double>(RowBlock::kRows * 200);
      EXPECT_LT(square, 1.1) << product.name;
      EXPECT_GT(square, product.kind == ScreenKind::int8 ? 0.9 : 0.1) << product.name;
    }
}

TEST(ScreenOutliers, FoundWhereThereAreSome) {
  const at::Tensor x = random({300, 96}, 1), w = random({200, 96}, 2);
  for (const ScreenProduct& product : all_screen_products()) {
    const auto found = [&](const at::Tensor& rows, const at::Tensor& latents) {
      return outlier_dims(product, rows.const_data_ptr<float>(), rows.size(0),
                          latents.const_data_ptr<float>(), latents.size(0), 96, 16);
    };
    using Dims = std::vector<int64_t>;
    EXPECT_EQ(found(x, w), Dims{}) << product.name;
    at::Tensor large = x.clone();
    large.select(1, 7).mul_(30);
    large.select(1, 90).mul_(30);
    EXPECT_EQ(found(large, w), (Dims{7, 90})) << product.name;
    at::Tensor heavy = w.clone();
    heavy.select(1, 11).mul_(40);
    EXPECT_EQ(found(x, heavy), Dims{11}) << product.name;
    // A few odd rows are none of its business.
    at::Tensor odd = x.clone();
    odd[5].mul_(1e6);
    odd[6][3] = 1e6;
    odd[7].zero_();
    odd[8][0] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(found(odd, w), Dims{}) << product.name;
    EXPECT_EQ(found(at::zeros({10, 96}), w), Dims{}) << product.name;
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
                                     Shape{130, 1031, 64, 32}, Shape{200, 4099, 100, 8},
                                     Shape{3, 3000, 130, 600})),
    [](const auto& of) {
      const Shape& s = std::get<1>(of.param);
      return std::get<0>(of.param).name + "_" + std::to_string(s.b) + "x" + std::to_string(s.d) +
             "x" + std::to_string(s.l) + "k" + std::to_string(s.k);
    });

}  // namespace megadict
