// `megadict sweep --evaluate`: no training, one pass over the held-out rows for many dictionaries,
// the training sweep's table of them.
#pragma once

#include <string>

#include "app/commands.h"
#include "comm/launch.h"

namespace megadict {

// Whether these are arguments of this form of the command.
bool is_evaluation(const Args& args);

// Every dictionary on the mesh of all ranks, with the numbers of `megadict eval` on that mesh bit
// for bit; what is in the sweep's folder already is left alone. All dictionaries are looked at
// before the first is judged: exit 2 and 3 leave nothing behind. Collective over the launch.
int run_sweep_evaluation(Launch& launch, const Args& args);

std::string help_sweep_evaluation();

}  // namespace megadict
