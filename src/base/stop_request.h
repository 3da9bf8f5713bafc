// USR1 and TERM set a flag; nothing else happens in the handler. The training loop carries the
// flag in its small all-reduce, so that all ranks stop after the same step.
#pragma once

#include "base/error.h"

namespace megadict {

enum class StopRequest : int { none = 0, requeue = 1 /* USR1 */, terminate = 2 /* TERM, INT */ };

void install_stop_handlers();
StopRequest stop_requested();           // TERM outranks USR1
ExitCode code_of(StopRequest request);  // 0, 75, 143
// After the last commit: TERM no longer interrupts leaving together.
void ignore_stop_signals();

}  // namespace megadict
