// kernels.isa and kernels.set: which versions of the operations this process runs.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "kernels/isa.h"
#include "train/config.h"

namespace megadict {

// What `asked` means where `common` is the best that every rank's processor has. `was_auto`: the
// name is what `auto` picked before a resume; it gives way, with a note, where some processor lacks
// it. Exit 2 (agreed) where somebody asked for that, or the run is deterministic.
Isa resolve_isa(const std::string& asked, Isa common, bool was_auto, bool deterministic = false);

// The name of asked.isa resolved, the same on every rank; from here on this process uses it and
// asked.set. Collective over world.
std::string choose_kernels(Communicator& world, const KernelConfig& asked, bool was_auto,
                           bool deterministic);

}  // namespace megadict
