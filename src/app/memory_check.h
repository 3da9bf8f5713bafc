// Whether a run fits into the memory of its nodes, judged before anything large is made.
#pragma once

#include "app/config.h"
#include "comm/launch.h"

namespace megadict {

// Bytes a new process can use without swapping (MemAvailable, and the control group's limit); -1
// where the system does not say.
int64_t free_memory();

// Exit 2 (agreed) where the ranks of some node need more than is free there, with the numbers and a
// mesh that would fit; `config` is resolved. Collective over the launch's world.
void check_memory(Launch& launch, const Config& config, int64_t width, int64_t sample_bytes,
                  int64_t rows);

}  // namespace megadict
