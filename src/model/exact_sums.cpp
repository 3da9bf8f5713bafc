#include "model/exact_sums.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "kernels/fixed_point.h"
#include "model/tensor_views.h"

namespace megadict {

double largest_of_all(const Mesh& mesh, double mine, const char* name) {
  mesh.world->all_reduce(view_of(&mine, 1), ReduceOp::max, name);
  return mine;
}

at::Tensor exact_sum(const Mesh& mesh, const at::Tensor& terms_rc, int64_t rows, const char* name) {
  const double largest = largest_of_all(mesh, largest_magnitude(terms_rc), name);
  if (!std::isfinite(largest))
    return at::full({terms_rc.size(1)}, std::numeric_limits<double>::quiet_NaN(),
                    terms_rc.options());
  const FixedPoint unit = fixed_point(largest, rows);
  at::Tensor total = (terms_rc * unit.up).round_().to(at::kLong).sum(0);
  mesh.world->all_reduce(view_of(total), ReduceOp::sum, name);
  return total.to(at::kDouble) * unit.down;
}

}  // namespace megadict
