#include "eval/pursuit.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <set>

namespace megadict {
namespace {

struct Given {
  at::Tensor atoms_nd, x_bd;
};

Given random_problem(int64_t rows, int64_t n, int64_t d, int64_t seed) {
  at::manual_seed(seed);
  at::Tensor atoms = at::randn({n, d});
  atoms = (atoms / atoms.norm(2, {1}, true)).contiguous();
  const at::Tensor codes = at::where(at::rand({rows, n}) < 3.0 / static_cast<double>(n),
                                     at::randn({rows, n}).abs(), at::zeros({}));
  return {atoms, at::mm(codes, atoms).contiguous()};
}

at::Tensor dense(const Codes& codes) {
  at::Tensor out = at::zeros({codes.rows, codes.latents}, at::kDouble);
  const auto* start = codes.row_start.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < codes.rows; ++r)
    for (int64_t e = start[r]; e < start[r + 1]; ++e)
      out[r][codes.latent[e].item<int64_t>()] = codes.value[e].item<double>();
  return out;
}

at::Tensor run(const char* name, const Given& given, const PursuitSettings& settings) {
  for (const Pursuit& pursuit : all_pursuits())
    if (pursuit.name == name) return dense(pursuit.run({given.x_bd, given.atoms_nd, settings}));
  ADD_FAILURE() << "no pursuit " << name;
  return {};
}

double squared_error(const Given& given, const at::Tensor& codes) {
  return (at::mm(codes, given.atoms_nd.to(at::kDouble)) - given.x_bd).square().sum().item<double>();
}

class Greedy : public testing::TestWithParam<const char*> {};

TEST_P(Greedy, OrthonormalAtomsGiveTheNonNegativeProjection) {
  at::manual_seed(1);
  const at::Tensor basis = std::get<0>(at::linalg_qr(at::randn({6, 6}))).contiguous();
  const Given given{basis, at::randn({20, 6})};
  const at::Tensor exact = at::mm(given.x_bd, basis.t()).clamp_min(0).to(at::kDouble);
  const at::Tensor codes = run(GetParam(), given, {.k = 6});
  EXPECT_LT((codes - exact).abs().max().item<double>(), 1e-5);
}

TEST_P(Greedy, NoMoreThanKAndLessErrorWithMore) {
  const Given given = random_problem(40, 24, 9, 2);
  double before = given.x_bd.square().sum().item<double>();
  for (const int64_t k : {1, 2, 3, 5}) {
    const at::Tensor codes = run(GetParam(), given, {.k = k});
    EXPECT_LE((codes > 0).sum(1).max().item<int64_t>(), k);
    EXPECT_GE(codes.min().item<double>(), 0);
    const double error = squared_error(given, codes);
    EXPECT_LT(error, before);
    before = error;
  }
}

TEST_P(Greedy, OneAtomIsFoundAtOnce) {
  Given given = random_problem(8, 24, 9, 3);
  given.x_bd = (given.atoms_nd.narrow(0, 5, 8) * 1.5).contiguous();
  const at::Tensor codes = run(GetParam(), given, {.k = 4});
  for (int64_t r = 0; r < 8; ++r) EXPECT_NEAR(codes[r][r + 5].item<double>(), 1.5, 1e-5);
  EXPECT_LT(squared_error(given, codes), 1e-9);
}

TEST_P(Greedy, NothingPositiveGivesNothing) {
  Given given = random_problem(4, 3, 5, 4);
  given.x_bd = at::zeros({4, 5});
  EXPECT_EQ((run(GetParam(), given, {.k = 2}) > 0).sum().item<int64_t>(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, Greedy, testing::Values("mp", "gp", "omp"));

// Karush-Kuhn-Tucker: D^T (x - D s) is lambda where s > 0, and no larger elsewhere.
void expect_optimal(const Given& given, const at::Tensor& codes, double lambda, double tolerance) {
  const at::Tensor atoms = given.atoms_nd.to(at::kDouble);
  const at::Tensor correlation =
      at::mm(given.x_bd.to(at::kDouble) - at::mm(codes, atoms), atoms.t());
  EXPECT_LT((correlation - lambda).max().item<double>(), tolerance);
  const at::Tensor active = codes > 0;
  ASSERT_GT(active.sum().item<int64_t>(), 0);
  EXPECT_LT((correlation - lambda).masked_select(active).abs().max().item<double>(), tolerance);
}

TEST(Lasso, LarsAndFistaAreTheSameAndOptimal) {
  for (const double lambda : {0.01, 0.05, 0.3}) {
    const Given given = random_problem(64, 16, 8, 5);
    const PursuitSettings settings{.lambda = lambda, .iterations = 20000};
    const at::Tensor by_lars = run("lars", given, settings),
                     by_fista = run("fista", given, settings);
    expect_optimal(given, by_lars, lambda, 1e-5);
    expect_optimal(given, by_fista, lambda, 1e-4);
    EXPECT_LT((by_lars - by_fista).abs().max().item<double>(), 1e-4) << lambda;
  }
}

TEST(Lasso, FistaThatBeginsAnewIsOptimalInFarFewerSteps) {
  const Given given = random_problem(64, 40, 12, 8);
  const PursuitSettings few{.lambda = 0.05, .iterations = 600, .restart = true};
  expect_optimal(given, run("fista", given, few), 0.05, 1e-4);
}

TEST(Lasso, GrownFromTwoCandidatesItIsThatOfAllAtoms) {
  const Given given = random_problem(50, 200, 16, 6);
  for (const char* name : {"lars", "fista"}) {
    PursuitSettings settings{.lambda = 0.05, .iterations = 20000, .candidates = 200};
    const at::Tensor all = run(name, given, settings);
    settings.candidates = 2;
    const at::Tensor grown = run(name, given, settings);
    expect_optimal(given, grown, 0.05, 2e-4);
    EXPECT_NEAR(squared_error(given, grown), squared_error(given, all), 1e-3);
  }
}

TEST(Lasso, NothingAboveLambdaGivesNothing) {
  const Given given = random_problem(10, 16, 8, 7);
  for (const char* name : {"lars", "fista", "lca", "lca_ista"})
    EXPECT_EQ(run(name, given, {.lambda = 100}).abs().sum().item<double>(), 0);
}

double lasso(const Given& given, const at::Tensor& codes, double lambda) {
  return squared_error(given, codes) / 2 + lambda * codes.sum().item<double>();
}

TEST(Lca, ComesNearTheLassosObjective) {
  const Given given = random_problem(64, 16, 8, 5);
  for (const double lambda : {0.01, 0.1}) {
    const PursuitSettings settings{.lambda = lambda, .iterations = 20000};
    const double least = lasso(given, run("fista", given, settings), lambda);
    EXPECT_LT(lasso(given, run("lca", given, settings), lambda), 1.02 * least) << lambda;
    EXPECT_LT(lasso(given, run("lca_sum", given, settings), lambda), 1.005 * least) << lambda;
    PursuitSettings longer = settings;
    longer.lca.iterations = 20000;
    EXPECT_NEAR(lasso(given, run("lca_ista", given, longer), lambda), least, 1e-4 * least);
  }
}

// Fewer atoms at first allow longer steps: no further from the lasso than with all of them.
TEST(Lca, GrownFromTwoCandidatesItIsNoWorseThanFromAll) {
  const Given given = random_problem(50, 200, 16, 6);
  PursuitSettings settings{.lambda = 0.05, .iterations = 20000, .candidates = 200};
  const double least = lasso(given, run("fista", given, settings), settings.lambda);
  for (const char* name : {"lca", "lca_sum", "lca_ista"}) {
    settings.candidates = 200;
    const double all = lasso(given, run(name, given, settings), settings.lambda);
    settings.candidates = 2;
    const double grown = lasso(given, run(name, given, settings), settings.lambda);
    EXPECT_GT(grown, least * (1 - 1e-4)) << name;
    EXPECT_LT(grown, all * (1 + 1e-3)) << name;
  }
}

Codes given_codes(const at::Tensor& support_bn) {
  Codes codes{support_bn.size(0), support_bn.size(1), {}, {}, {}};
  codes.row_start = at::cat({at::zeros({1}, at::kLong), support_bn.sum(1).cumsum(0)});
  codes.latent = support_bn.nonzero().select(1, 1).to(at::kInt).contiguous();
  codes.value = at::ones({codes.latent.size(0)}, at::kFloat);
  return codes;
}

// Non-negative least squares: on the support no atom points along what is left, and where a code is
// positive none points against it.
TEST(Refit, IsOptimalOnTheGivenAtoms) {
  const Given given = random_problem(50, 24, 9, 9);
  const at::Tensor support = at::rand({50, 24}) < 0.2;
  const Codes start = given_codes(support);
  const at::Tensor codes =
      dense(all_pursuits().back().run({given.x_bd, given.atoms_nd, {}, &start}));
  EXPECT_EQ(all_pursuits().back().name, "refit");
  EXPECT_EQ(codes.masked_select(~support).abs().sum().item<double>(), 0);
  const at::Tensor atoms = given.atoms_nd.to(at::kDouble);
  const at::Tensor along = at::mm(given.x_bd.to(at::kDouble) - at::mm(codes, atoms), atoms.t());
  EXPECT_LT(along.masked_select(support).max().item<double>(), 1e-5);
  EXPECT_LT(along.masked_select(codes > 0).abs().max().item<double>(), 1e-5);
  EXPECT_GT((codes > 0).sum().item<int64_t>(), 100);
}

TEST(Refit, OfNoAtomsIsNothing) {
  const Given given = random_problem(5, 24, 9, 10);
  const Codes start = given_codes(at::zeros({5, 24}, at::kBool));
  EXPECT_EQ(all_pursuits().back().run({given.x_bd, given.atoms_nd, {}, &start}).nnz(), 0);
}

TEST(Pursuits, HaveNamesOfTheirOwn) {
  std::set<std::string_view> names;
  for (const Pursuit& pursuit : all_pursuits()) EXPECT_TRUE(names.insert(pursuit.name).second);
}

}  // namespace
}  // namespace megadict
