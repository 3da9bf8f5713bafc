// Sparse codes of rows by optimisation, for a dictionary that is given: what an encoder is to be
// compared with (inference.h). All atoms are unit rows and all codes non-negative; signed codes are
// those of the atoms and their negatives. A row's codes do not depend on the other rows.
//
// Items: C4 matching pursuit, C5 gradient pursuit, C6 orthogonal matching pursuit, C7 FISTA (Beck
// and Teboulle 2009) and LARS (Efron et al. 2004) for min 1/2 |x - D s|^2 + lambda |s|_1, s >= 0;
// B11 LCA (Rozell et al. 2008) for the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <string_view>

#include "kernels/codes.h"

namespace megadict {

// B11. A row begins with u = 0 and step 1 / (number of atoms); codes are a = max(u, 0). Each time
// half and twice the step are tried along the gradient of the lasso, and the one with the smaller J
// stays: mean (x - D a)^2 + lambda mean a, or the lasso itself.
struct LcaSettings {
  int64_t iterations = 300;  // at most, ...
  double fall = 1e-6;        // ... of a batch (lab/lca.h) it ends where no row's J falls by as much
  bool sum_j = false;        // J = 1/2 |x - D a|^2 + lambda sum a
  bool ista = false;         // u becomes a after each step, and the step stays: 1 / eigenvalue
};

struct PursuitSettings {
  int64_t k = 32;             // mp, gp, omp: rounds, so the most that are active
  double lambda = 0.05;       // fista, lars: of the sum over a row's entries
  int64_t iterations = 1000;  // fista: at most, ...
  double still = 1e-12;       // ... it ends where no code moves by more
  // fista: momentum begins anew where it points uphill (O'Donoghue and Candes 2015, eq 12).
  bool restart = false;
  bool persistent_mask = true;  // gp: atoms whose code was clipped to 0 stay in the mask
  LcaSettings lca = {};
  // fista, lars, lca: atoms a row is solved with at first; those that then would join are added
  // until there are none, so the answer is that of all atoms.
  int64_t candidates = 256;
};

struct PursuitArgs {
  const at::Tensor& x_bd;      // f32, what the atoms are to add up to
  const at::Tensor& atoms_nd;  // f32, unit rows (or 0: such atoms are never taken)
  const PursuitSettings& settings;
  const Codes* given = nullptr;  // refit: codes of the same rows
};

enum class PursuitTakes { k, lambda, codes };

struct Pursuit {
  std::string_view name, item, summary;
  PursuitTakes takes;
  Codes (*run)(const PursuitArgs& args);  // atoms with a positive code, ascending in each row
};

std::span<const Pursuit> all_pursuits();

}  // namespace megadict
