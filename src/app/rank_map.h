// Which rank runs where: printed by `info`, kept as ranks.txt of a run.
#pragma once

#include <string>

#include "comm/launch.h"

namespace megadict {

// A header and a line per rank, in rank order, without a newline at the end. Collective.
std::string rank_map_text(Launch& launch);

}  // namespace megadict
