#include "lab/lca.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <cmath>

#include "lab/dictionary_learning.h"
#include "lab/problem.h"
#include "lab/scores.h"

namespace megadict {
namespace {

Tiles<double> wide(const Tiles<float>& of) {
  Tiles<double> out(of.samples(), of.features());
  std::copy(of.values().begin(), of.values().end(), out.values().begin());
  return out;
}

Learnt<double> wide(const Learnt<float>& of) {
  Learnt<double> out(of.name, of.rows, of.cols);
  std::copy(of.value.begin(), of.value.end(), out.value.begin());
  return out;
}

at::Tensor matrix(const Learnt<double>& d) {
  return at::tensor(d.value, at::kDouble).view({d.rows, d.cols});
}

at::Tensor matrix(const Tiles<double>& tiles) {
  at::Tensor out = at::empty({tiles.samples(), tiles.features()}, at::kDouble);
  for (int64_t s = 0; s < tiles.samples(); ++s)
    for (int64_t f = 0; f < tiles.features(); ++f) out[s][f] = tiles.at(s, f);
  return out;
}

// a = max(0, a - step (D^T (D a - x) + lambda)), written out, beside the mode's every step.
TEST(TileLca, IstaModeIsProximalGradientStepForStep) {
  const LabProblem problem = make_problem({.seed = 4}, 64);
  const Learnt<double> d = wide(problem.dictionary);
  const Tiles<double> x = wide(problem.x_test);
  const at::Tensor d_mn = matrix(d), x_bm = matrix(x);
  constexpr double kLambda = 0.05;
  const auto codes_after = [&](int64_t iterations) {
    Tiles<double> codes;
    run_lca(d, x, kLambda, {.iterations = iterations, .fall = -1, .ista = true}, codes);
    return matrix(codes);
  };
  const at::Tensor begin = at::mm(x_bm, d_mn) - kLambda;
  const double step = (codes_after(1).sum() / begin.clamp_min(0).sum()).item<double>();
  const double most = at::linalg_eigvalsh(at::mm(d_mn.t(), d_mn)).max().item<double>();
  EXPECT_LE(step, 1 / most);
  EXPECT_GT(step, 0.95 / most);
  at::Tensor a = at::zeros({x.samples(), d.cols}, at::kDouble);
  for (int64_t t = 1; t <= 40; ++t) {
    const at::Tensor du = at::mm(at::mm(a, d_mn.t()) - x_bm, d_mn) + kLambda;
    a = (a - step * du).clamp_min(0);
    EXPECT_LT((codes_after(t) - a).abs().max().item<double>(), 1e-12) << t;
  }
}

// A1 with the true dictionary: at most 2 % above FISTA's objective, .5 % with sum-J. At lambda .01
// the first holds on most data seeds, not on all (`lab run pursuits` counts them): J by means
// weighs the penalty less than the lasso does, and more steps do not help.
TEST(TileLca, ComesNearTheLassosObjective) {
  for (const uint64_t seed : {20240926, 20240927})
    for (const double lambda : {0.01, 0.1}) {
      const LabProblem problem = make_problem({.seed = seed}, 2048);
      const auto objective = [&](const Tiles<float>& codes) {
        return lasso_objective(problem.dictionary, problem.x_test, lambda, codes);
      };
      Tiles<float> best, by_means, by_sums;
      run_fista(problem.dictionary, problem.x_test, lambda, 1000, best);
      run_lca(problem.dictionary, problem.x_test, lambda, {}, by_means);
      run_lca(problem.dictionary, problem.x_test, lambda, {.sum_j = true}, by_sums);
      EXPECT_LT(objective(by_means), 1.02 * objective(best)) << seed << " " << lambda;
      EXPECT_LT(objective(by_sums), 1.005 * objective(best)) << seed << " " << lambda;
    }
}

// Row by row, with all atoms (eval/pursuit.h), it is the same method.
TEST(TileLca, IsThatOfTheRows) {
  const LabProblem problem = make_problem({.seed = 5}, 64);
  const at::Tensor x_bd = rows_of(problem.x_test), atoms_nd = columns_of(problem.dictionary);
  PursuitSettings settings{.lambda = 0.05};
  settings.lca = {.iterations = 20, .fall = -1};
  for (const Pursuit& pursuit : all_pursuits()) {
    if (!pursuit.name.starts_with("lca")) continue;
    const Codes rows = pursuit.run({x_bd, atoms_nd, settings});
    LcaSettings of_tiles = settings.lca;
    of_tiles.sum_j = pursuit.name == "lca_sum";
    of_tiles.ista = pursuit.name == "lca_ista";
    Tiles<double> codes;
    run_lca(wide(problem.dictionary), wide(problem.x_test), settings.lambda, of_tiles, codes);
    at::Tensor left = matrix(codes);
    const auto* start = rows.row_start.const_data_ptr<int64_t>();
    for (int64_t r = 0; r < rows.rows; ++r)
      for (int64_t e = start[r]; e < start[r + 1]; ++e)
        left[r][rows.latent[e].item<int64_t>()] -= rows.value[e].item<double>();
    EXPECT_LT(left.abs().max().item<double>(), 1e-4) << pursuit.name;
  }
}

double nmse(const Learnt<double>& d, const Tiles<double>& x, const Tiles<double>& codes) {
  const at::Tensor wanted = matrix(x);
  const at::Tensor rest = at::mm(matrix(codes), matrix(d).t()) - wanted;
  const at::Tensor spread = (wanted - wanted.mean(0, true)).square().mean();
  return (rest.square().mean() / (spread + 1e-8)).item<double>();
}

void expect_gradient(bool whole_loop) {
  const LabProblem problem = make_problem({.seed = 6}, 64);
  const Tiles<double> x = wide(problem.x_train);
  Learnt<double> d = wide(problem.dictionary);
  draw_normal(d, 3, 0);
  make_columns_unit(d);
  const LcaSettings settings{.iterations = 25, .fall = -1};
  constexpr double kLambda = 0.1, kStep = 1e-6;
  Tiles<double> codes;
  run_lca(d, x, kLambda, settings, codes);
  const double loss = lca_gradient(d, x, kLambda, settings, whole_loop);
  EXPECT_NEAR(loss, nmse(d, x, codes), 1e-12);
  const std::vector<double> gradient = d.gradient;
  for (size_t i = 0; i < d.value.size(); i += 5) {
    const auto shifted = [&](double by) {
      Learnt<double> moved = d;
      moved.value[i] += by;
      Tiles<double> anew = codes;
      if (whole_loop) run_lca(moved, x, kLambda, settings, anew);
      return nmse(moved, x, anew);
    };
    EXPECT_NEAR(gradient[i], (shifted(kStep) - shifted(-kStep)) / (2 * kStep), 1e-7) << i;
  }
}

TEST(LcaGradient, OfHeldCodesMatchesCentralDifferences) {
  expect_gradient(false);
}

TEST(LcaGradient, ThroughEveryStepMatchesCentralDifferences) {
  expect_gradient(true);
}

TEST(DlLca, HeldCodesFindTheDictionary) {
  const LabProblem problem = make_problem({.seed = 7}, 2048);
  std::vector<double> losses;
  const Learnt<float> d = learn_by_lca(problem.x_train, {.steps = 300}, &losses);
  ASSERT_EQ(losses.size(), 300);
  EXPECT_LT(losses.back(), 0.5 * losses.front());
  EXPECT_GT(dictionary_cosine(problem.dictionary, d),
            random_baseline(problem.dictionary, 16, 1).cosine + 0.1);
}

TEST(DlLca, ThroughItsStepsTheLossFalls) {
  const LabProblem problem = make_problem({.seed = 7}, 2048);
  std::vector<double> losses;
  learn_by_lca(problem.x_train, {.steps = 300, .lca = {.iterations = 50}, .whole_loop = true},
               &losses);
  EXPECT_LT(losses.back(), 0.7 * losses.front());
}

}  // namespace
}  // namespace megadict
