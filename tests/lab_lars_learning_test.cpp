// C8: signed codes solve the lasso; learning in turn lowers its objective and finds the atoms.
#include "lab/lars_learning.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lab/dictionary_learning.h"
#include "lab/problem.h"
#include "lab/scores.h"

namespace megadict {
namespace {

LabProblem signed_problem() {
  SynthOptions options = {.n_latents = 16, .width = 8, .k = 3, .sign = "signed"};
  options.seed = 42;
  return make_problem(options, 1024);
}

// d = x - D s: |<atom, d>| = lambda with the code's sign where it is not 0, at most lambda
// elsewhere.
TEST(LarsLearning, SignedCodesAreTheLassos) {
  constexpr double kLambda = .05;
  const LabProblem p = signed_problem();
  const Tiles<float> codes = signed_lars_codes(p.dictionary, p.x_test, kLambda);
  Tiles<float> rest(p.x_test.samples(), p.x_test.features());
  multiply(p.dictionary.view(), nullptr, codes, rest);
  for (size_t i = 0; i < rest.values().size(); ++i)
    rest.values()[i] = p.x_test.values()[i] - rest.values()[i];
  Tiles<float> product(rest.samples(), codes.features());
  multiply_transposed(p.dictionary.view(), rest, product);
  int64_t negative = 0;
  for (size_t i = 0; i < product.values().size(); ++i) {
    const float z = codes.values()[i], c = product.values()[i];
    negative += z < 0 ? 1 : 0;
    if (z != 0)
      ASSERT_NEAR(c, std::copysign(kLambda, z), 1e-4) << i;
    else
      ASSERT_LE(std::abs(c), kLambda + 1e-4) << i;
  }
  EXPECT_GT(negative, codes.samples());
}

TEST(LarsLearning, LearningLowersTheObjectiveAndFindsAtoms) {
  const LabProblem p = signed_problem();
  const auto learnt = [&](int64_t rounds) {
    return learn_by_lars(p.x_train, {.latents = 16, .lambda = .05, .rounds = rounds, .seed = 84});
  };
  const auto objective = [&](const Learnt<float>& d) {
    return lasso_objective(d, p.x_train, .05, signed_lars_codes(d, p.x_train, .05));
  };
  const Learnt<float> first = learnt(1), fifth = learnt(5), last = learnt(30);
  EXPECT_LT(objective(fifth), objective(first));
  EXPECT_LT(objective(last), objective(fifth));
  EXPECT_GT(dictionary_mcc(p.dictionary, last), .85);
  for (int64_t c = 0; c < last.cols; ++c) {
    double square = 0;
    for (int64_t r = 0; r < last.rows; ++r)
      square += std::pow(last.value[static_cast<size_t>(r * last.cols + c)], 2);
    EXPECT_NEAR(square, 1, 1e-5);
  }
}

}  // namespace
}  // namespace megadict
