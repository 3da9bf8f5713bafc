// Takes the place of communicator_nccl.cpp in a build without NCCL.
#include "base/error.h"
#include "comm/backends.h"

namespace megadict {

std::unique_ptr<Communicator> make_device_world(Communicator&, LaunchFacts&) {
  fail_agreed(ExitCode::usage, "run.device cuda: built without NCCL",
              "configure with -DMEGADICT_NCCL=ON");
}

std::string gpu_support() {
  return "built without NCCL";
}

}  // namespace megadict
