// The locally competitive algorithm on a row's few atoms (small_lasso.h). What an atom's state u
// comes to is linear in what was left of the row on the way: after steps c_t it is
// <atom, sum c_t (x - D a_t)> - lambda sum c_t. So one product with the mean of the a_t, weighted
// by c_t, says of an atom that took no part whether its code would be above 0 at the end; those
// whose code is so only on the way are left out. With all atoms from the start it is the method as
// it stands; fewer allow longer steps, and the codes come nearer to the lasso's in as many.
//
// J is not monotone in one row: its end is the iterations', not where J stops falling, which asks
// all rows of a batch.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "eval/small_lasso.h"

namespace megadict {

namespace {

// Where a row's states are: codes, their products, the objective.
struct LcaPoint {
  std::vector<double> u, a, product;
  double j = 0;
};

LcaPoint point_at(const SmallLasso& lasso, std::vector<double> u) {
  LcaPoint p{std::move(u), std::vector<double>(lasso.n), std::vector<double>(lasso.n), 0};
  double sum = 0, along = 0, energy = 0;
  for (size_t i = 0; i < lasso.n; ++i) p.a[i] = std::max(0.0, p.u[i]);
  add_product(lasso, p.a, p.product);
  for (size_t i = 0; i < lasso.n; ++i) {
    sum += p.a[i];
    along += p.a[i] * lasso.product[i];
    energy += p.a[i] * p.product[i];
  }
  const double squares = lasso.square - 2 * along + energy;
  p.j = lasso.lca.sum_j ? squares / 2 + lasso.lambda * sum
                        : squares / static_cast<double>(lasso.width) +
                              lasso.lambda * sum / static_cast<double>(lasso.atoms);
  return p;
}

// One step of that length along the lasso's gradient.
LcaPoint moved(const SmallLasso& lasso, const LcaPoint& from, double step) {
  std::vector<double> u = from.u;
  for (size_t i = 0; i < lasso.n; ++i)
    u[i] -= step * (from.product[i] - lasso.product[i] + lasso.lambda);
  return point_at(lasso, std::move(u));
}

LassoSolution solve_lca(const SmallLasso& lasso) {
  constexpr double kMargin = 1.01;
  double step = lasso.lca.ista ? 1 / (kMargin * std::max(largest_eigenvalue(lasso), kPursuitGuard))
                               : 1 / static_cast<double>(lasso.atoms);
  LcaPoint now = point_at(lasso, std::vector<double>(lasso.n));
  double length = 0;
  std::vector<double> mean(lasso.n);
  for (int64_t t = 0; t < lasso.lca.iterations; ++t) {
    LcaPoint next;
    if (lasso.lca.ista) {
      next = moved(lasso, now, step);
      next.u = next.a;
    } else {
      LcaPoint shorter = moved(lasso, now, step / 2), longer = moved(lasso, now, 2 * step);
      step = longer.j < shorter.j ? 2 * step : step / 2;
      next = std::move(longer.j < shorter.j ? longer : shorter);
      for (size_t i = 0; i < lasso.n; ++i) mean[i] += step * now.a[i];
      length += step;
    }
    now = std::move(next);
  }
  if (lasso.lca.ista || length == 0) return {now.a, {}};
  for (double& value : mean) value /= length;
  return {now.a, mean};
}

Codes run(const PursuitArgs& args, bool sum_j, bool ista) {
  PursuitSettings settings = args.settings;
  settings.lca.sum_j |= sum_j;
  settings.lca.ista |= ista;
  return solve_lassos({args.x_bd, args.atoms_nd, settings}, solve_lca, LassoStart::candidates);
}

}  // namespace

Codes lca(const PursuitArgs& args) {
  return run(args, false, false);
}

Codes lca_sum(const PursuitArgs& args) {
  return run(args, true, false);
}

Codes lca_ista(const PursuitArgs& args) {
  return run(args, false, true);
}

}  // namespace megadict
