// Sums over ranks with the same bits on every mesh (kernels/fixed_point.h), for deterministic mode
// and for what is done once.
#pragma once

#include <ATen/core/Tensor.h>

#include "comm/mesh.h"

namespace megadict {

enum class Sums { fast, exact };

// Largest over all ranks. Collective over world.
double largest_of_all(const Mesh& mesh, double mine, const char* name);

// Sums over rows of all ranks' terms [rows, columns] fp64: [columns]. `rows`: at least the number
// of all ranks' rows, the same on every mesh. A term that is not finite makes all sums NaN.
// Collective over world.
at::Tensor exact_sum(const Mesh& mesh, const at::Tensor& terms_rc, int64_t rows, const char* name);

}  // namespace megadict
