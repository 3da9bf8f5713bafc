#include "eval/pursuit.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "eval/pursuit_rows.h"

namespace megadict {

void write_residual(const float* x, const RowCode& code, const float* atoms_nd, int64_t d,
                    float* residual) {
  std::vector<double> sum(static_cast<size_t>(d));
  for (size_t i = 0; i < code.atom.size(); ++i) {
    const float* atom = atoms_nd + code.atom[i] * d;
    for (int64_t c = 0; c < d; ++c) sum[static_cast<size_t>(c)] += code.value[i] * atom[c];
  }
  for (int64_t c = 0; c < d; ++c)
    residual[c] = static_cast<float>(x[c] - sum[static_cast<size_t>(c)]);
}

Codes codes_of(const std::vector<RowCode>& rows, int64_t atoms) {
  Codes codes;
  codes.rows = static_cast<int64_t>(rows.size());
  codes.latents = atoms;
  codes.row_start = at::zeros({codes.rows + 1}, at::kLong);
  auto* start = codes.row_start.mutable_data_ptr<int64_t>();
  const auto is_positive = [](double value) { return value > 0; };
  for (size_t r = 0; r < rows.size(); ++r)
    start[r + 1] =
        start[r] + std::count_if(rows[r].value.begin(), rows[r].value.end(), is_positive);
  codes.latent = at::empty({start[codes.rows]}, at::kInt);
  codes.value = at::empty({start[codes.rows]}, at::kFloat);
  auto* latent = codes.latent.mutable_data_ptr<int32_t>();
  auto* value = codes.value.mutable_data_ptr<float>();
  for (const RowCode& row : rows) {
    std::vector<size_t> order(row.atom.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return row.atom[a] < row.atom[b]; });
    for (const size_t i : order) {
      if (!is_positive(row.value[i])) continue;
      *latent++ = row.atom[i];
      *value++ = static_cast<float>(row.value[i]);
    }
  }
  return codes;
}

namespace {

constexpr std::array<Pursuit, 10> kPursuits = {{
    {"mp", "C4", "matching pursuit: the best atom's share, again and again", PursuitTakes::k,
     matching_pursuit},
    {"gp", "C5", "gradient pursuit: a step along the gradient of the atoms found", PursuitTakes::k,
     gradient_pursuit},
    {"omp", "C6", "orthogonal matching pursuit: least squares on the atoms found", PursuitTakes::k,
     orthogonal_pursuit},
    {"fista", "C7", "lasso by accelerated proximal gradient steps", PursuitTakes::lambda, fista},
    {"lca", "B11", "lasso by thresholded gradient steps, each as long as helps its row",
     PursuitTakes::lambda, lca},
    {"lca_sum", "B11", "lca whose steps are chosen by the lasso itself, not by means",
     PursuitTakes::lambda, lca_sum},
    {"lca_ista", "B11", "lca with clipped states and one step: proximal gradient steps",
     PursuitTakes::lambda, lca_ista},
    {"lars", "C7", "lasso by least-angle regression, with drops", PursuitTakes::lambda, lars},
    {"lars_refit", "C7", "non-negative least squares on the atoms that lars takes",
     PursuitTakes::lambda, lars_refit},
    {"refit", "C3", "non-negative least squares on the atoms of given codes", PursuitTakes::codes,
     refit},
}};

}  // namespace

std::span<const Pursuit> all_pursuits() {
  return kPursuits;
}

}  // namespace megadict
