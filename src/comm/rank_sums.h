// Sums whose order does not depend on when messages came.
#pragma once

#include "base/buffer_view.h"

namespace megadict {

// `parts`: one part of sum.count elements of each rank, added in rank order; half-precision values
// in fp32, rounded once. Host memory.
void sum_in_rank_order(const ConstBufferView& parts, int ranks, const BufferView& sum);

}  // namespace megadict
