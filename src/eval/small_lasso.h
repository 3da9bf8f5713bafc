// The lasso min 1/2 |x - D s|^2 + lambda |s|_1, s >= 0, row by row on a small set of atoms that
// grows until no other atom would join: the answer is then that of all of them, without an n x n
// product.
#pragma once

#include <cstdint>
#include <vector>

#include "eval/pursuit_rows.h"

namespace megadict {

// A lasso of few atoms: their products with each other and with the row.
struct SmallLasso {
  size_t n = 0;
  std::vector<double> gram, product;  // [n, n], [n]
  double lambda = 0;
  int64_t iterations = 0;
  double still = 0;
  bool restart = false;
  LcaSettings lca;
  double square = 0;             // |x|^2
  int64_t width = 0, atoms = 0;  // of a row, and of the whole dictionary
  std::vector<double> start;     // codes to begin with, [n]
};

struct LassoSolution {
  std::vector<double> codes;
  // Atoms join that point along x - D joins by more than lambda; empty = the codes.
  std::vector<double> joins;
};

using LassoSolve = LassoSolution (*)(const SmallLasso& lasso);

// The products times v, which is mostly 0, added to `out`.
void add_product(const SmallLasso& lasso, const std::vector<double>& v, std::vector<double>& out);
// The largest eigenvalue of the products, from below.
double largest_eigenvalue(const SmallLasso& lasso);

// Row r's on the atoms of `code`, from its values.
SmallLasso small_lasso(const PursuitArgs& args, int64_t r, const RowCode& code);

// What a row begins with: of its settings.candidates most correlated atoms those above lambda, or
// all of them.
enum class LassoStart { above_lambda, candidates };

// Every row, until no atom would join.
Codes solve_lassos(const PursuitArgs& args, LassoSolve solve,
                   LassoStart start = LassoStart::above_lambda);

}  // namespace megadict
