#include "lab/problem.h"

#include <gmock/gmock.h>

#include <cmath>

#include "lab/scores.h"

namespace megadict {
namespace {

TEST(Problem, SamplesAreTheirCodesInTheDictionary) {
  const LabProblem problem = make_problem({.k = 3, .seed = 2}, 128);
  Tiles<float> x(64, 8);
  for (const auto& [samples, codes] : {std::pair(&problem.x_train, &problem.s_train),
                                       std::pair(&problem.x_test, &problem.s_test)}) {
    multiply(problem.dictionary.view(), nullptr, *codes, x);
    for (size_t i = 0; i < x.values().size(); ++i)
      EXPECT_NEAR(x.values()[i], samples->values()[i], 1e-5);
    for (int64_t i = 0; i < 64; ++i) {
      int64_t active = 0;
      for (int64_t j = 0; j < 16; ++j) active += codes->at(i, j) > 0 ? 1 : 0;
      EXPECT_EQ(active, 3);
    }
  }
  EXPECT_NE(problem.x_train.at(0, 0), problem.x_test.at(0, 0));
}

TEST(Problem, CompressedSensingLine) {
  EXPECT_NEAR(cs_line(16, 3), 10.04, 0.005);
  EXPECT_NEAR(cs_line(32, 3), 14.20, 0.005);
  EXPECT_NEAR(cs_line(64, 3), 18.36, 0.005);
  EXPECT_NEAR(cs_line(128, 3), 22.52, 0.005);
}

TEST(Scores, PermutedAndRescaledCodesScoreOne) {
  const LabProblem problem = make_problem({.seed = 3}, 512);
  Tiles<float> codes(256, 16);
  Learnt<float> dictionary("D", 8, 16);
  for (int64_t j = 0; j < 16; ++j) {
    const int64_t to = (5 * j + 3) % 16;
    for (int64_t i = 0; i < 256; ++i)
      codes.at(i, to) = static_cast<float>(j + 1) * problem.s_test.at(i, j);
    for (int64_t r = 0; r < 8; ++r)
      dictionary.value[static_cast<size_t>(r * 16 + to)] =
          -2 * problem.dictionary.value[static_cast<size_t>(r * 16 + j)];
  }
  EXPECT_NEAR(latent_mcc(problem.s_test, codes), 1, 1e-6);
  EXPECT_NEAR(dictionary_mcc(problem.dictionary, dictionary), 1, 1e-6);
  EXPECT_NEAR(dictionary_cosine(problem.dictionary, dictionary), 1, 1e-6);
  EXPECT_LT(known_codes_score(problem.s_test, codes), 0.5);
  EXPECT_NEAR(known_codes_score(problem.s_test, problem.s_test), 1, 1e-9);
}

// The seeds' own figures: .63 to .69, with cosines .60 to .62.
TEST(Scores, ARandomDictionaryIsFarFromZero) {
  const LabProblem problem = make_problem({.seed = 20240926}, 32);
  const RandomBaseline baseline = random_baseline(problem.dictionary, 16, 1);
  EXPECT_THAT(baseline.mcc, testing::AllOf(testing::Gt(0.6), testing::Lt(0.72)));
  EXPECT_THAT(baseline.cosine, testing::AllOf(testing::Gt(0.57), testing::Lt(0.66)));
}

TEST(Scores, SuperpositionByHand) {
  Learnt<float> d("D", 2, 3);  // columns (1, 0), (0, 2), (3, 3)
  d.value = {1, 0, 3, 0, 2, 3};
  EXPECT_THAT(superposition(d), testing::ElementsAre(testing::DoubleNear(std::sqrt(0.5), 1e-6),
                                                     testing::DoubleNear(std::sqrt(0.5), 1e-6),
                                                     testing::DoubleNear(1, 1e-6)));
}

TEST(Scores, SharesOfActiveCodes) {
  Tiles<float> codes(16, 2);
  codes.at(3, 0) = 0.5f;
  codes.at(4, 1) = -1e-4f;
  EXPECT_DOUBLE_EQ(l0_fraction(codes, 0), 2.0 / 32);
  EXPECT_DOUBLE_EQ(l0_fraction(codes, 1e-3), 1.0 / 32);
}

}  // namespace
}  // namespace megadict
