// For tests that run under mpirun: the world of this run. A failure on any rank fails the test on
// all; rank 0 prints it, prefixed by the rank. EXPECT, not ASSERT, before a collective.
//
// The world is MPI's, unless the test also links megadict_comm_standin (ROOMS ... comm_standin):
// then it is a NCCL communicator on the stand-in of tests/support/nccl_standin, which takes host
// memory for GPU memory, and buffers may say cpu or cuda.
#pragma once

#include "comm/communicator.h"
#include "comm/launch.h"

namespace megadict {

Launch& test_launch();
Communicator& test_world();
Device test_device();

}  // namespace megadict
