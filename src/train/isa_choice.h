// kernels.isa and kernels.set: which versions of the operations this process runs.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "train/config.h"

namespace megadict {

// What `asked.isa` means, the same on every rank, and from here on what this process uses, with
// `asked.set`. `was_auto`: the name is what `auto` picked before a resume, and gives way on a
// processor that lacks it. Exit 2 (agreed) where somebody asked for what some rank's processor has
// not. Collective over world.
std::string choose_kernels(Communicator& world, const KernelConfig& asked, bool was_auto);

}  // namespace megadict
