// FISTA and LARS on a row's few atoms (small_lasso.h), and values refitted on given ones.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "eval/pursuit_rows.h"
#include "eval/small_lasso.h"

namespace megadict {

namespace {

double entry(const SmallLasso& lasso, size_t i, size_t j) {
  return lasso.gram[i * lasso.n + j];
}

LassoSolution solve_fista(const SmallLasso& lasso) {
  constexpr double kMargin = 1.01;
  const double step = 1 / (kMargin * std::max(largest_eigenvalue(lasso), kPursuitGuard));
  std::vector<double> s = lasso.start, y = s, gradient(lasso.n);
  double t = 1;
  for (int64_t iteration = 0; iteration < lasso.iterations; ++iteration) {
    for (size_t i = 0; i < lasso.n; ++i) gradient[i] = -lasso.product[i];
    add_product(lasso, y, gradient);
    const double next_t = (1 + std::sqrt(1 + 4 * t * t)) / 2, momentum = (t - 1) / next_t;
    double moved = 0, uphill = 0;
    for (size_t i = 0; i < lasso.n; ++i) {
      const double next = std::max(0.0, y[i] - step * (gradient[i] + lasso.lambda));
      moved = std::max(moved, std::abs(next - s[i]));
      uphill += (y[i] - next) * (next - s[i]);
      y[i] = next + momentum * (next - s[i]);
      s[i] = next;
    }
    t = next_t;
    if (lasso.restart && uphill > 0) {
      t = 1;
      y = s;
    }
    if (moved < lasso.still) break;
  }
  return {s, {}};
}

// (G_AA)^-1 1 by Gaussian elimination with pivots. False where G_AA is singular.
bool equiangular(const SmallLasso& lasso, const std::vector<size_t>& active,
                 std::vector<double>& w) {
  const size_t n = active.size();
  std::vector<double> a(n * n);
  w.assign(n, 1);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) a[i * n + j] = entry(lasso, active[i], active[j]);
  for (size_t c = 0; c < n; ++c) {
    size_t pivot = c;
    for (size_t r = c + 1; r < n; ++r)
      if (std::abs(a[r * n + c]) > std::abs(a[pivot * n + c])) pivot = r;
    if (std::abs(a[pivot * n + c]) < kPursuitGuard) return false;
    for (size_t j = 0; j < n; ++j) std::swap(a[c * n + j], a[pivot * n + j]);
    std::swap(w[c], w[pivot]);
    for (size_t r = c + 1; r < n; ++r) {
      const double factor = a[r * n + c] / a[c * n + c];
      for (size_t j = c; j < n; ++j) a[r * n + j] -= factor * a[c * n + j];
      w[r] -= factor * w[c];
    }
  }
  for (size_t c = n; c-- > 0;) {
    for (size_t j = c + 1; j < n; ++j) w[c] -= a[c * n + j] * w[j];
    w[c] /= a[c * n + c];
  }
  return true;
}

// From the largest correlation down to lambda: the active codes move together so that all active
// correlations stay the largest; an atom joins when its own comes up to them, and leaves when its
// code comes to 0.
LassoSolution solve_lars(const SmallLasso& lasso) {
  std::vector<double> s(lasso.n), c = lasso.product;
  std::vector<size_t> active;
  std::vector<bool> is_active(lasso.n, false), is_dependent(lasso.n, false);
  size_t left = lasso.n;  // the atom that left in the step before; it may not come back in this one
  const auto first = std::max_element(c.begin(), c.end());
  if (first == c.end() || *first <= lasso.lambda) return {s, {}};
  double level = *first;
  active.push_back(static_cast<size_t>(first - c.begin()));
  is_active[active[0]] = true;
  for (size_t step = 0; step < 100 * lasso.n + 100; ++step) {
    std::vector<double> w;
    if (!equiangular(lasso, active, w)) {  // the newest atom depends on the others: out for good
      is_active[active.back()] = false;
      is_dependent[active.back()] = true;
      active.pop_back();
      continue;
    }
    std::vector<double> fall(lasso.n);
    for (size_t a = 0; a < active.size(); ++a)
      for (size_t i = 0; i < lasso.n; ++i) fall[i] += entry(lasso, active[a], i) * w[a];
    double length = level - lasso.lambda;
    size_t joins = lasso.n, leaves = active.size();
    for (size_t i = 0; i < lasso.n; ++i) {
      if (is_active[i] || is_dependent[i] || i == left || fall[i] >= 1 - kPursuitGuard) continue;
      const double until = std::max(0.0, (level - c[i]) / (1 - fall[i]));
      if (until < length) length = until, joins = i;
    }
    for (size_t a = 0; a < active.size(); ++a) {
      if (w[a] >= 0) continue;
      const double until = -s[active[a]] / w[a];
      if (until < length) length = until, leaves = a, joins = lasso.n;
    }
    for (size_t a = 0; a < active.size(); ++a) s[active[a]] += length * w[a];
    for (size_t i = 0; i < lasso.n; ++i) c[i] -= length * fall[i];
    level -= length;
    left = lasso.n;
    if (leaves < active.size()) {
      left = active[leaves];
      s[left] = 0;
      is_active[left] = false;
      active.erase(active.begin() + static_cast<std::ptrdiff_t>(leaves));
      if (active.empty()) return {s, {}};
    } else if (joins < lasso.n) {
      is_active[joins] = true;
      active.push_back(joins);
    } else {
      break;
    }
  }
  for (double& value : s) value = std::max(0.0, value);
  return {s, {}};
}

}  // namespace

Codes fista(const PursuitArgs& args) {
  return solve_lassos(args, solve_fista);
}

Codes lars(const PursuitArgs& args) {
  return solve_lassos(args, solve_lars);
}

// Without the shrinkage that lambda asks of the codes.
Codes lars_refit(const PursuitArgs& args) {
  const Codes found = lars(args);
  return refit({args.x_bd, args.atoms_nd, args.settings, &found});
}

// The lasso's path followed down to lambda = 0, on the given atoms alone.
Codes refit(const PursuitArgs& args) {
  if (args.given == nullptr) fail(ExitCode::error, "refit needs codes to begin with");
  const int64_t rows = args.x_bd.size(0);
  PursuitSettings settings = args.settings;
  settings.lambda = 0;
  const PursuitArgs free = {args.x_bd, args.atoms_nd, settings};
  const auto* start = args.given->row_start.const_data_ptr<int64_t>();
  const auto* atom = args.given->latent.const_data_ptr<int32_t>();
  std::vector<RowCode> codes(static_cast<size_t>(rows));
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      RowCode& code = codes[static_cast<size_t>(r)];
      code.atom.assign(atom + start[r], atom + start[r + 1]);
      code.value.assign(code.atom.size(), 0);
      code.value = solve_lars(small_lasso(free, r, code)).codes;
    }
  });
  return codes_of(codes, args.atoms_nd.size(0));
}

}  // namespace megadict
