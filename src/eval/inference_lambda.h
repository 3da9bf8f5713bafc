// The lasso's lambda with which its codes are as sparse as an encoder's.
#pragma once

#include <cstddef>
#include <functional>

#include "eval/inference_rows.h"

namespace megadict {

struct LambdaSearch {
  double lambda = 0;
  size_t best = 0;  // which of the calls of mean_l0 it was
};

// The largest correlation that an atom has with what the encoder leaves of a row, on average of all
// rows: near what is looked for, since the lasso leaves lambda. Collective over the mesh.
double first_lambda(const Mesh& mesh, const InferenceRows& rows);

// The lambda whose mean L0 is nearest to `target`, positive: from `first` outwards to values on
// either side, then between them, until the L0 is within a thousandth. mean_l0(lambda) falls, but
// for small steps.
LambdaSearch lambda_of_l0(double target, double first,
                          const std::function<double(double)>& mean_l0);

}  // namespace megadict
