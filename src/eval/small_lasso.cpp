#include "eval/small_lasso.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "base/clones.h"
#include "kernels/kernel_set.h"
#include "kernels/vector_ops.h"

namespace megadict {

namespace {

// y += factor * x: whole rows of the products, so that the sums run over independent lanes.
MEGADICT_CLONES void add_row(double* y, double factor, const double* x, size_t n) {
  for (size_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

}  // namespace

void add_product(const SmallLasso& lasso, const std::vector<double>& v, std::vector<double>& out) {
  for (size_t j = 0; j < lasso.n; ++j)
    if (v[j] != 0) add_row(out.data(), v[j], lasso.gram.data() + j * lasso.n, lasso.n);
}

double largest_eigenvalue(const SmallLasso& lasso) {
  constexpr int kSteps = 100;
  std::vector<double> v(lasso.n, 1 / std::sqrt(static_cast<double>(lasso.n))), next(lasso.n);
  double norm = 0;
  for (int step = 0; step < kSteps; ++step) {
    std::fill(next.begin(), next.end(), 0);
    add_product(lasso, v, next);
    norm = std::sqrt(std::inner_product(next.begin(), next.end(), next.begin(), 0.0));
    if (norm == 0) return 0;
    for (size_t i = 0; i < lasso.n; ++i) v[i] = next[i] / norm;
  }
  return norm;
}

SmallLasso small_lasso(const PursuitArgs& args, int64_t r, const RowCode& code) {
  const int64_t d = args.x_bd.size(1);
  const float* x = args.x_bd.const_data_ptr<float>() + r * d;
  const auto* atoms = args.atoms_nd.const_data_ptr<float>();
  SmallLasso lasso;
  lasso.n = code.atom.size();
  lasso.lambda = args.settings.lambda;
  lasso.iterations = args.settings.iterations;
  lasso.still = args.settings.still;
  lasso.restart = args.settings.restart;
  lasso.lca = args.settings.lca;
  lasso.square = dot(x, x, d);
  lasso.width = d;
  lasso.atoms = args.atoms_nd.size(0);
  lasso.start = code.value;
  lasso.gram.resize(lasso.n * lasso.n);
  for (size_t i = 0; i < lasso.n; ++i) {
    const float* atom = atoms + code.atom[i] * d;
    lasso.product.push_back(dot(atom, x, d));
    for (size_t j = 0; j <= i; ++j)
      lasso.gram[i * lasso.n + j] = lasso.gram[j * lasso.n + i] =
          dot(atom, atoms + code.atom[j] * d, d);
  }
  return lasso;
}

namespace {

// A row's candidates and its codes of them.
struct LassoRow {
  RowCode code;
  bool grows = true;  // atoms have joined since it was solved
};

void solve_row(const PursuitArgs& args, LassoSolve solve, int64_t r, LassoRow& row,
               float* residual) {
  const int64_t d = args.x_bd.size(1);
  LassoSolution solution = solve(small_lasso(args, r, row.code));
  row.grows = false;
  row.code.value = solution.joins.empty() ? solution.codes : std::move(solution.joins);
  write_residual(args.x_bd.const_data_ptr<float>() + r * d, row.code,
                 args.atoms_nd.const_data_ptr<float>(), d, residual);
  row.code.value = std::move(solution.codes);
}

// The atoms most correlated with what is left, where they would still lower the objective.
bool add_joining(LassoRow& row, const int32_t* atom, const float* value, int64_t width,
                 double least) {
  for (int64_t c = 0; c < width && value[c] > least; ++c) {
    if (std::find(row.code.atom.begin(), row.code.atom.end(), atom[c]) != row.code.atom.end())
      continue;
    row.code.atom.push_back(atom[c]);
    row.code.value.push_back(0);
    row.grows = true;
  }
  return row.grows;
}

}  // namespace

Codes solve_lassos(const PursuitArgs& args, LassoSolve solve, LassoStart start) {
  constexpr double kTolerance = 1e-5;  // of fp32 correlations, relative to lambda
  const int64_t rows = args.x_bd.size(0), d = args.x_bd.size(1), n = args.atoms_nd.size(0);
  const at::Tensor bias = at::zeros({n}, args.x_bd.options());
  at::Tensor residual_bd = args.x_bd.clone();
  std::vector<LassoRow> all(static_cast<size_t>(rows));
  double least = start == LassoStart::candidates ? -std::numeric_limits<double>::infinity()
                                                 : args.settings.lambda;
  for (bool is_open = true; is_open;) {
    is_open = false;
    const Candidates best =
        kernels_for(residual_bd)
            .topk({residual_bd, args.atoms_nd, bias}, std::min(args.settings.candidates, n));
    const int64_t width = best.value.size(1);
    for (int64_t r = 0; r < rows; ++r)
      is_open |= add_joining(all[static_cast<size_t>(r)],
                             best.latent.const_data_ptr<int32_t>() + r * width,
                             best.value.const_data_ptr<float>() + r * width, width, least);
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        LassoRow& row = all[static_cast<size_t>(r)];
        if (row.grows)
          solve_row(args, solve, r, row, residual_bd.mutable_data_ptr<float>() + r * d);
      }
    });
    least = args.settings.lambda * (1 + kTolerance) + kTolerance * kTolerance;
  }
  std::vector<RowCode> codes;
  for (LassoRow& row : all) codes.push_back(std::move(row.code));
  return codes_of(codes, n);
}

}  // namespace megadict
