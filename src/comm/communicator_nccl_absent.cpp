// Takes the place of communicator_nccl.cpp in a build without NCCL.
#include "base/error.h"
#include "comm/backends.h"

namespace megadict {

std::unique_ptr<Communicator> make_device_world(Communicator&, const LaunchFacts&) {
  fail_agreed(ExitCode::usage, "cannot use a GPU: built without NCCL",
              "configure with -DMEGADICT_NCCL=ON");
}

}  // namespace megadict
