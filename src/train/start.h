// The state a run begins with: fresh, from another dictionary, or from a checkpoint.
#pragma once

#include "train/loop.h"

namespace megadict {

// Rows of the sample for b_dec, var_total and normalisation statistics.
inline constexpr int64_t kSampleRows = 32768;

// Collective over the mesh.
TrainState start_state(const Mesh& mesh, const TrainJob& job);

}  // namespace megadict
