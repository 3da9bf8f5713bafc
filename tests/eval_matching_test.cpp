#include "eval/matching.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "base/philox.h"
#include "eval/assignment.h"

namespace megadict {
namespace {

at::Tensor normals(int64_t rows, int64_t cols, uint64_t draw) {
  at::Tensor out = at::empty({rows, cols}, at::kDouble);
  const Rng rng{21, Purpose::test, draw};
  for (int64_t i = 0; i < rows * cols; ++i)
    out.mutable_data_ptr<double>()[i] = rng.normals(static_cast<uint64_t>(i))[0];
  return out;
}

// |Pearson| or |cos| entry by entry.
std::vector<double> similarities(const at::Tensor& a, const at::Tensor& b, Similarity similarity) {
  std::vector<double> out;
  for (int64_t i = 0; i < a.size(0); ++i)
    for (int64_t j = 0; j < b.size(0); ++j) {
      double xy = 0, xx = 0, yy = 0;
      const bool centre = similarity == Similarity::pearson;
      const double mx = centre ? a[i].mean().item<double>() : 0;
      const double my = centre ? b[j].mean().item<double>() : 0;
      for (int64_t t = 0; t < a.size(1); ++t) {
        const double x = a[i][t].item<double>() - mx, y = b[j][t].item<double>() - my;
        xy += x * y;
        xx += x * x;
        yy += y * y;
      }
      out.push_back(std::abs(xy) / std::sqrt(xx * yy));
    }
  return out;
}

TEST(Matching, APermutedRescaledCopyScoresOne) {
  const at::Tensor a = normals(40, 12, 1);
  const at::Tensor order = at::arange(39, -1, -1, at::kLong);
  at::Tensor b = a.index_select(0, order) * normals(40, 1, 2);
  for (const auto similarity : {Similarity::pearson, Similarity::cosine})
    for (const auto method : {MatchMethod::assignment, MatchMethod::greedy}) {
      const Match match = match_rows(a, b, similarity, method);
      EXPECT_NEAR(match.mean, 1.0, 1e-6);
      for (size_t i = 0; i < 40; ++i) EXPECT_EQ(match.partner[i], static_cast<int64_t>(39 - i));
    }
  const Match shifted = match_rows(a, b + 5, Similarity::pearson);
  EXPECT_NEAR(shifted.mean, 1.0, 1e-6);  // Pearson does not see a constant
}

TEST(Matching, EqualsAssignmentOfTheEntries) {
  for (uint64_t draw = 0; draw < 20; ++draw) {
    const at::Tensor a = normals(6, 5, draw), b = normals(9, 5, draw + 100);
    for (const auto similarity : {Similarity::pearson, Similarity::cosine}) {
      const std::vector<double> entries = similarities(a, b, similarity);
      EXPECT_EQ(match_rows(a, b, similarity, MatchMethod::assignment).partner,
                best_assignment(entries.data(), 6, 9));
      const Match greedy = match_rows(a, b, similarity, MatchMethod::greedy);
      EXPECT_EQ(greedy.partner, greedy_assignment(entries.data(), 6, 9));
      for (size_t i = 0; i < 6; ++i)
        EXPECT_NEAR(greedy.similarity[i], entries[i * 9 + static_cast<size_t>(greedy.partner[i])],
                    1e-12);
    }
  }
}

// |Pearson| of rows (1,0,-1), (0,1,-1), (1,1,-2) with (2,0,-2), (0,-3,3), (1,-1,0):
//   1 1/2 1/2 | 1/2 1 1/2 | s s 0 with s = sqrt(3)/2. Greedy takes 1 + 1 + 0, the best 1/2 + 1 + s.
TEST(Matching, HandCase) {
  const at::Tensor a = at::tensor({1., 0., -1., 0., 1., -1., 1., 1., -2.}).view({3, 3});
  const at::Tensor b = at::tensor({2., 0., -2., 0., -3., 3., 1., -1., 0.}).view({3, 3});
  const Match greedy = match_rows(a, b, Similarity::pearson, MatchMethod::greedy);
  EXPECT_EQ(greedy.partner, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_NEAR(greedy.mean, 2.0 / 3, 1e-6);
  EXPECT_NEAR(match_rows(a, b, Similarity::pearson).mean, (1.5 + std::sqrt(.75)) / 3, 1e-6);
}

TEST(Matching, ConstantRowsAndNansScoreZero) {
  at::Tensor a = normals(4, 6, 3), b = a.clone();
  a[1].fill_(2.0);
  a[2][0] = std::nan("");
  for (const auto method : {MatchMethod::assignment, MatchMethod::greedy}) {
    const Match match = match_rows(a, b, Similarity::pearson, method);
    EXPECT_NEAR(match.mean, 0.5, 1e-12);
    EXPECT_EQ(match.similarity[1], 0);
    EXPECT_EQ(match.similarity[2], 0);
  }
  const at::Tensor zeros = at::zeros({5, 6}, at::kDouble);
  EXPECT_EQ(match_rows(zeros, b, Similarity::cosine, MatchMethod::greedy).mean, 0);
}

TEST(Matching, SidesOfDifferentLength) {
  const at::Tensor a = normals(10, 7, 4), b = a.narrow(0, 2, 4);
  for (const auto method : {MatchMethod::assignment, MatchMethod::greedy}) {
    const Match down = match_rows(a, b, Similarity::cosine, method);
    EXPECT_NEAR(down.mean, 1, 1e-12);
    EXPECT_EQ(down.partner, (std::vector<int64_t>{-1, -1, 0, 1, 2, 3, -1, -1, -1, -1}));
    EXPECT_NEAR(match_rows(b, a, Similarity::cosine, method).mean, 1, 1e-12);
  }
  EXPECT_THROW(match_rows(a, normals(3, 6, 1), Similarity::cosine), Error);
}

// Above the limit: greedy in blocks of float32, the same pairs as the copy's permutation.
TEST(Matching, LargeDictionariesAreMatchedGreedily) {
  const int64_t n = kAssignmentLimit + 100;
  const at::Tensor a = normals(n, 8, 5).to(at::kFloat);
  const at::Tensor b = a.flip(0) + 1e-4 * normals(n, 8, 6).to(at::kFloat);
  const Match match = match_rows(a, b, Similarity::cosine);
  EXPECT_EQ(match.method, MatchMethod::greedy);
  EXPECT_GT(match.mean, .9999);
  EXPECT_LE(match.mean, 1.00001);
}

// Over 500 random pairs NumPy and SciPy give .666 by Pearson (sd .028) and .629 by cosine: with
// 8 entries, a dictionary that learned nothing scores far above 0.
TEST(Matching, RandomBaselineOfTheSmallProblem) {
  constexpr int pairs = 10;
  double pearson = 0, cosine = 0, mcc = 0;
  for (uint64_t draw = 0; draw < pairs; ++draw) {
    const DictionaryScores scores =
        compare_dictionaries(normals(16, 8, 30 + draw), normals(16, 8, 60 + draw), draw);
    pearson += scores.random_mcc / pairs;
    cosine += scores.random_mcc_cosine / pairs;
    mcc += scores.mcc / pairs;
  }
  EXPECT_NEAR(pearson, .666, .015);
  EXPECT_NEAR(cosine, .629, .015);
  EXPECT_NEAR(mcc, pearson, .03);  // b is random here, too
}

TEST(Mmcs, IsDirectedAndSigned) {
  const at::Tensor a = at::eye(3, at::kDouble), b = a.narrow(0, 0, 2);
  EXPECT_NEAR(mmcs(b, a), 1, 1e-7);
  EXPECT_NEAR(mmcs(a, b), 2.0 / 3, 1e-7);
  EXPECT_NEAR(mmcs(a, -a), 0, 1e-7);
  EXPECT_NEAR(mmcs(a.narrow(0, 0, 1), -b.narrow(0, 0, 1)), -1, 1e-7);
}

TEST(MatchCodes, IsPearsonOverSamples) {
  const at::Tensor codes = normals(50, 6, 7).clamp_min(0);
  const Match match = match_codes(codes, codes.flip(1) * 3);
  EXPECT_NEAR(match.mean, 1, 1e-6);
  EXPECT_EQ(match.partner, (std::vector<int64_t>{5, 4, 3, 2, 1, 0}));
}

TEST(DictionaryScores, TextAndJsonHoldThemAll) {
  const DictionaryScores scores = compare_dictionaries(normals(5, 4, 8), normals(7, 4, 9));
  const nlohmann::ordered_json json = scores_json(scores);
  EXPECT_EQ(json["pairs"], 5);
  EXPECT_EQ(json["matching"], "assignment");
  for (const char* name : {"mcc", "mcc_cosine", "mmcs"})
    EXPECT_NE(scores_text(scores).find(name), std::string::npos);
}

}  // namespace
}  // namespace megadict
