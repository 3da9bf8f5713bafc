// Pursuits that take one atom a round: the one most correlated with what is left of the row.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "eval/pursuit_rows.h"
#include "kernels/kernel_set.h"
#include "kernels/vector_ops.h"

namespace megadict {

namespace {

struct Found {
  int32_t atom = -1;
  double correlation = 0;
};

// omp: the selected atoms' products with each other, factored (L L^T, lower), and with the row.
struct Selected {
  std::vector<double> factor, product;
};

// What one row's round may use.
struct Row {
  const float* x;
  const float* atoms_nd;
  int64_t d;
  float* residual;
  RowCode& code;
  Selected& selected;
  bool& ended;
};

int64_t place_of(const RowCode& code, int32_t atom) {
  const auto found = std::find(code.atom.begin(), code.atom.end(), atom);
  return found == code.atom.end() ? -1 : found - code.atom.begin();
}

// The place of an atom in the code; new ones enter with 0.
size_t enter(RowCode& code, int32_t atom) {
  const int64_t place = place_of(code, atom);
  if (place >= 0) return static_cast<size_t>(place);
  code.atom.push_back(atom);
  code.value.push_back(0);
  return code.atom.size() - 1;
}

// k rounds over all rows: `take` makes one round of one row with the best atom, or, where
// `unselected`, with the best that its code does not hold.
Codes pursue(const PursuitArgs& args, bool unselected,
             const std::function<void(const Row&, Found)>& take) {
  const int64_t rows = args.x_bd.size(0), d = args.x_bd.size(1), n = args.atoms_nd.size(0);
  at::Tensor residual_bd = args.x_bd.clone();
  const at::Tensor bias = at::zeros({n}, args.x_bd.options());
  std::vector<RowCode> codes(static_cast<size_t>(rows));
  std::vector<Selected> selected(static_cast<size_t>(rows));
  std::vector<uint8_t> ended(static_cast<size_t>(rows), 0);
  for (int64_t round = 0; round < std::min(args.settings.k, n); ++round) {
    const int64_t wanted = unselected ? std::min(round + 1, n) : 1;
    const Candidates best =
        kernels_for(residual_bd).topk({residual_bd, args.atoms_nd, bias}, wanted);
    const int64_t width = best.value.size(1);
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        RowCode& code = codes[static_cast<size_t>(r)];
        bool has_ended = ended[static_cast<size_t>(r)] != 0;
        const auto* atom = best.latent.const_data_ptr<int32_t>() + r * width;
        const auto* value = best.value.const_data_ptr<float>() + r * width;
        int64_t c = 0;
        while (unselected && c < width && place_of(code, atom[c]) >= 0) ++c;
        if (c == width || !(value[c] > kPursuitGuard)) has_ended = true;
        if (!has_ended)
          take({args.x_bd.const_data_ptr<float>() + r * d, args.atoms_nd.const_data_ptr<float>(), d,
                residual_bd.mutable_data_ptr<float>() + r * d, code,
                selected[static_cast<size_t>(r)], has_ended},
               {atom[c], value[c]});
        ended[static_cast<size_t>(r)] = has_ended ? 1 : 0;
      }
    });
  }
  return codes_of(codes, n);
}

// w <- max(0, w + step g) on the mask, the step that is best along the gradient g (Algorithm of
// Blumensath and Davies 2008, non-negative).
void gradient_round(const Row& row, Found found, bool persistent) {
  enter(row.code, found.atom);
  const size_t count = row.code.atom.size();
  std::vector<double> gradient(count), along(static_cast<size_t>(row.d));
  for (size_t i = 0; i < count; ++i) {
    const bool masked = persistent || row.code.value[i] > 0 || row.code.atom[i] == found.atom;
    const float* atom = row.atoms_nd + row.code.atom[i] * row.d;
    gradient[i] = masked ? dot(atom, row.residual, row.d) : 0;
    for (int64_t c = 0; c < row.d; ++c) along[static_cast<size_t>(c)] += gradient[i] * atom[c];
  }
  double square = 0, product = 0;
  for (int64_t c = 0; c < row.d; ++c) {
    square += along[static_cast<size_t>(c)] * along[static_cast<size_t>(c)];
    product += along[static_cast<size_t>(c)] * row.residual[c];
  }
  if (square <= kPursuitGuard) {
    row.ended = true;
    return;
  }
  for (size_t i = 0; i < count; ++i)
    row.code.value[i] = std::max(0.0, row.code.value[i] + product / square * gradient[i]);
  write_residual(row.x, row.code, row.atoms_nd, row.d, row.residual);
}

// Entry (i, j <= i) of a lower triangle, kept row by row.
size_t at_lower(size_t i, size_t j) {
  return i * (i + 1) / 2 + j;
}

// Solves (L L^T) s = b.
std::vector<double> solve_cholesky(const std::vector<double>& l, std::vector<double> b) {
  const size_t n = b.size();
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < i; ++j) b[i] -= l[at_lower(i, j)] * b[j];
    b[i] /= l[at_lower(i, i)];
  }
  for (size_t i = n; i-- > 0;) {
    for (size_t j = i + 1; j < n; ++j) b[i] -= l[at_lower(j, i)] * b[j];
    b[i] /= l[at_lower(i, i)];
  }
  return b;
}

// Least squares on the selected atoms, negatives then cut to 0. A round adds one row to the factor
// of the products.
void orthogonal_round(const Row& row, Found found) {
  constexpr double kDependent = 1e-10;
  enter(row.code, found.atom);
  const size_t i = row.code.atom.size() - 1;
  const auto atom = [&](size_t j) { return row.atoms_nd + row.code.atom[j] * row.d; };
  std::vector<double>& l = row.selected.factor;
  for (size_t j = 0; j <= i; ++j) {
    double sum = dot(atom(i), atom(j), row.d);
    for (size_t c = 0; c < j; ++c) sum -= l[at_lower(i, c)] * l[at_lower(j, c)];
    l.push_back(i == j ? std::sqrt(std::max(sum, 0.0)) : sum / l[at_lower(j, j)]);
  }
  if (l.back() < kDependent) {  // the new atom says nothing that the others do not
    row.code.atom.pop_back();
    row.code.value.pop_back();
    row.ended = true;
    return;
  }
  row.selected.product.push_back(dot(atom(i), row.x, row.d));
  row.code.value = solve_cholesky(l, row.selected.product);
  for (double& value : row.code.value) value = std::max(0.0, value);
  write_residual(row.x, row.code, row.atoms_nd, row.d, row.residual);
}

}  // namespace

Codes matching_pursuit(const PursuitArgs& args) {
  return pursue(args, false, [](const Row& row, Found found) {
    const size_t place = enter(row.code, found.atom);
    row.code.value[place] += found.correlation;
    write_residual(row.x, row.code, row.atoms_nd, row.d, row.residual);
  });
}

Codes gradient_pursuit(const PursuitArgs& args) {
  const bool persistent = args.settings.persistent_mask;
  return pursue(args, false, [persistent](const Row& row, Found found) {
    gradient_round(row, found, persistent);
  });
}

Codes orthogonal_pursuit(const PursuitArgs& args) {
  return pursue(args, true, orthogonal_round);
}

}  // namespace megadict
