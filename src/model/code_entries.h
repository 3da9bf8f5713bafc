// Some of the entries of codes.
#pragma once

#include "kernels/codes.h"

namespace megadict {

// Those where `kept` [nnz] bool is set.
Codes entries_where(const Codes& codes, const at::Tensor& kept);

}  // namespace megadict
