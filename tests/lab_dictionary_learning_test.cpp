#include "lab/dictionary_learning.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "lab/problem.h"

namespace megadict {
namespace {

// Karush-Kuhn-Tucker: D^T (x - D s) is lambda where s > 0 and no larger elsewhere.
TEST(TileFista, ReachesTheOptimum) {
  const LabProblem problem = make_problem({.seed = 4}, 64);
  constexpr double kLambda = 0.05;
  Tiles<float> codes;
  run_fista(problem.dictionary, problem.x_test, kLambda, 5000, codes);
  Tiles<float> rest(32, 8), correlation(32, 16);
  multiply(problem.dictionary.view(), nullptr, codes, rest);
  for (size_t i = 0; i < rest.values().size(); ++i)
    rest.values()[i] = problem.x_test.values()[i] - rest.values()[i];
  multiply_transposed(problem.dictionary.view(), rest, correlation);
  int64_t active = 0;
  for (size_t i = 0; i < codes.values().size(); ++i) {
    const float above = correlation.values()[i] - static_cast<float>(kLambda);
    EXPECT_LT(above, 2e-4);
    if (codes.values()[i] <= 1e-4) continue;
    EXPECT_GT(above, -2e-4);
    ++active;
  }
  EXPECT_GT(active, 0);
}

TEST(TileFista, MoreStepsAreNoWorse) {
  const LabProblem problem = make_problem({.seed = 5}, 64);
  double before = lasso_objective(problem.dictionary, problem.x_test, 0.1, Tiles<float>(32, 16));
  for (const int64_t iterations : {5, 50, 500}) {
    Tiles<float> codes;
    run_fista(problem.dictionary, problem.x_test, 0.1, iterations, codes);
    const double objective = lasso_objective(problem.dictionary, problem.x_test, 0.1, codes);
    EXPECT_LT(objective, before * (1 + 1e-6));
    before = objective;
  }
}

TEST(DlFista, ObjectiveFallsWithConvergedCodesAndAtomsStayUnit) {
  const LabProblem problem = make_problem({.seed = 6}, 512);
  std::vector<double> objectives;
  const Learnt<float> d =
      learn_by_fista(problem.x_train, {.rounds = 25, .iterations = 800, .seed = 1}, &objectives);
  ASSERT_EQ(objectives.size(), 25);
  for (size_t i = 1; i < objectives.size(); ++i)
    EXPECT_LE(objectives[i], objectives[i - 1] * (1 + 1e-5)) << i;
  EXPECT_LT(objectives.back(), 0.8 * objectives.front());
  for (int64_t j = 0; j < d.cols; ++j) {
    double square = 0;
    for (int64_t r = 0; r < d.rows; ++r)
      square += std::pow(d.value[static_cast<size_t>(r * d.cols + j)], 2);
    EXPECT_NEAR(square, 1, 1e-5);
  }
}

TEST(KMeans, InertiaNeverRisesAndCodesAreOneHot) {
  const LabProblem problem = make_problem({.seed = 7}, 512);
  const KMeans found = learn_by_kmeans(problem.x_train, 16, 3);
  EXPECT_TRUE(std::is_sorted(found.inertias.rbegin(), found.inertias.rend()));
  EXPECT_LT(found.inertias.back(), found.inertias.front());
  const Tiles<float> codes = nearest_centres(found.centres, problem.x_test);
  for (int64_t i = 0; i < codes.samples(); ++i) {
    float sum = 0;
    for (int64_t c = 0; c < 16; ++c) sum += codes.at(i, c);
    EXPECT_EQ(sum, 1);
  }
}

// As many centres as places: each place is a centre.
TEST(KMeans, FindsSeparatePlaces) {
  Tiles<float> x(48, 2);
  for (int64_t i = 0; i < 48; ++i) {
    x.at(i, 0) = static_cast<float>(10 * (i % 3));
    x.at(i, 1) = static_cast<float>(i % 3 == 1 ? 5 : 0);
  }
  EXPECT_NEAR(learn_by_kmeans(x, 3, 1).inertias.back(), 0, 1e-9);
}

}  // namespace
}  // namespace megadict
