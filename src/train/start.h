// The state a run begins with: fresh, from another dictionary, or from a checkpoint.
#pragma once

#include "train/loop.h"

namespace megadict {

// Rows of the sample for b_dec, var_total and normalisation statistics.
inline constexpr int64_t kSampleRows = 32768;

// Everything that a start can be refused for is refused here, before the run folder is touched.
// Collective over the mesh.
TrainState start_state(const Mesh& mesh, const TrainJob& job);

}  // namespace megadict
