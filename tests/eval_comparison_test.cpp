#include "eval/comparison.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "comm/backends.h"
#include "data/shard_writer.h"
#include "io/file.h"
#include "support/random_dictionary.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::random_dictionary;
using test::random_rows;

TEST(Comparison, CosinesOfAKnownDictionary) {
  // Three rows: e1, e2, -e1; cosines 0, -1, 0.
  const at::Tensor rows = at::tensor({2.0F, 0.0F, 0.0F, 1.0F, -3.0F, 0.0F}).view({3, 2});
  const CosineHistogram histogram = pairwise_cosines(rows);
  EXPECT_EQ(histogram.rows, 3);
  EXPECT_EQ(histogram.own.counts[0], 1);
  EXPECT_EQ(histogram.own.counts[kCosineBins / 2], 2);
  EXPECT_NEAR(histogram.own.mean_absolute, 1.0 / 3, 1e-6);
  EXPECT_NEAR(histogram.own.largest, 0, 1e-6);
  const auto& random = histogram.random.counts;
  EXPECT_EQ(std::accumulate(random.begin(), random.end(), int64_t{0}), 3);
  EXPECT_EQ(cosines_json(histogram)["own"]["counts"].size(), size_t{kCosineBins});
}

TEST(Comparison, SplitLatentsAreCounted) {
  // The wide one: two latents near e1, one near e2, one that is new.
  const at::Tensor narrow = at::eye(3).narrow(0, 0, 2);
  const at::Tensor wide =
      at::tensor({1.0F, .1F, 0.0F, 1.0F, -.1F, 0.0F, 0.0F, 1.0F, .1F, 0.0F, 0.0F, 1.0F})
          .view({4, 3});
  for (const auto& rows : {feature_splitting(narrow, wide), feature_splitting(wide, narrow)}) {
    const SplittingRow& row = rows.back();
    EXPECT_EQ(row.cosine, 0.9);
    EXPECT_EQ(row.parents, (std::array<int64_t, kChildBins>{0, 1, 1, 0, 0}));
    EXPECT_EQ(row.orphans, 1);
  }
}

class CodeMatching : public ::testing::Test {
 protected:
  CodeMatching() : world_(make_self_communicator("world")), mesh_(make_mesh(*world_, {})) {}

  ShardIndex write(const at::Tensor& x_bd) {
    make_folders(folder_ / "x");
    ShardWriter writer(folder_ / "x/a.h5", {x_bd.size(1), DType::f32, "m", "h", "t", 0}, 16);
    writer.append({x_bd.const_data_ptr<float>(), x_bd.size(0)});
    writer.finish();
    return ShardIndex::open(folder_ / "x");
  }

  test::TempFolder folder_;
  std::unique_ptr<Communicator> world_;
  Mesh mesh_;
};

TEST_F(CodeMatching, APermutedDictionaryIsFound) {
  const SavedDictionary a = random_dictionary("topk", "linear");
  const ShardIndex data = write(random_rows(a, 700, 11));
  SavedDictionary b = a;
  const at::Tensor order = at::randperm(a.dictionary.n);
  for (at::Tensor* t : {&b.dictionary.w_enc_ld, &b.dictionary.w_dec_ld, &b.dictionary.b_enc_l})
    *t = t->index_select(0, order);
  const CodeMatch match = match_codes_of(mesh_, a.dictionary, a.normalization, b.dictionary,
                                         b.normalization, data, 0, 100);
  EXPECT_EQ(match.rows, 700);
  EXPECT_NEAR(match.mean_alive, 1, 1e-9);
  EXPECT_LT(match.by_chance, 0.5);
  for (int64_t i = 0; i < a.dictionary.n; ++i) {
    const auto at = static_cast<size_t>(i);
    if (match.match.similarity[at] < 0.5) continue;
    EXPECT_EQ(order[match.match.partner[at]].item<int64_t>(), i);
  }
}

TEST_F(CodeMatching, OtherWidthsAndTheFormula) {
  const SavedDictionary a = random_dictionary("relu", "linear");
  SavedDictionary b = random_dictionary("relu", "linear", 25);
  const at::Tensor x = random_rows(a, 300, 11);
  const ShardIndex data = write(x);
  const CodeMatch match = match_codes_of(mesh_, a.dictionary, a.normalization, b.dictionary,
                                         b.normalization, data, 0, 64);
  const Match dense = match_codes(test::reconstruct(a, x).z_bn, test::reconstruct(b, x).z_bn);
  EXPECT_EQ(match.pairs, 25);
  EXPECT_NEAR(match.match.mean, dense.mean, 1e-5);
}

}  // namespace
}  // namespace megadict
