// kernels.encode = auto: which way of encoding is the fastest here, measured once at the start.
#pragma once

#include <string>

#include "comm/mesh.h"
#include "train/loop.h"

namespace megadict {

// Smaller shards are encoded exactly: there is little to gain, and what is measured wavers.
inline constexpr int64_t kFewestScreened = 8192;

// What `job.kernels.encode` means on this mesh, the same on every rank; says what auto picked and
// why. Exit 2 (agreed) where a screen is asked for that some rank's processor has not. Collective
// over the mesh.
std::string choose_encode(const Mesh& mesh, const TrainJob& job, const TrainState& state);

}  // namespace megadict
