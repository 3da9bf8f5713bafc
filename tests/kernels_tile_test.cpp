// Every version of a tile gives the hits of the scalar one; a product's errors and the dims kept
// out of it are as its header says.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/fp32_tile.h"
#include "kernels/screen.h"
#include "kernels/screen_outliers.h"
#include "kernels/vector_ops.h"
#include "support/screen_inputs.h"

namespace megadict {

namespace {

using test::Input;
using test::NamedTile;
using test::random;
using test::tiles_of;

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

}  // namespace
}  // namespace megadict
