// What the pursuits share: rows with their residuals and what they hold of which atoms.
#pragma once

#include <cstdint>
#include <vector>

#include "eval/pursuit.h"

namespace megadict {

// Values of atoms in the order in which they came; a code may be 0.
struct RowCode {
  std::vector<int32_t> atom;
  std::vector<double> value;
};

// Below it a correlation or a step's denominator is 0.
inline constexpr double kPursuitGuard = 1e-12;

// x - sum of value * atom, in fp64, written as fp32.
void write_residual(const float* x, const RowCode& code, const float* atoms_nd, int64_t d,
                    float* residual);
// The positive values, atoms ascending in each row.
Codes codes_of(const std::vector<RowCode>& rows, int64_t atoms);

Codes matching_pursuit(const PursuitArgs& args);
Codes gradient_pursuit(const PursuitArgs& args);
Codes orthogonal_pursuit(const PursuitArgs& args);
Codes fista(const PursuitArgs& args);
Codes lca(const PursuitArgs& args);
Codes lca_sum(const PursuitArgs& args);
Codes lca_ista(const PursuitArgs& args);
Codes lars(const PursuitArgs& args);
Codes lars_refit(const PursuitArgs& args);
Codes refit(const PursuitArgs& args);

}  // namespace megadict
