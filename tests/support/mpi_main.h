// For tests that run under mpirun: the world of this run. A failure on any rank fails the test on
// all; rank 0 prints it, prefixed by the rank. EXPECT, not ASSERT, before a collective.
#pragma once

#include "comm/communicator.h"
#include "comm/launch.h"

namespace megadict {

Launch& test_launch();
Communicator& test_world();

}  // namespace megadict
