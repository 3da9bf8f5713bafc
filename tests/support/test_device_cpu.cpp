#include "support/mpi_main.h"

namespace megadict {

Device test_device() {
  return Device::cpu;
}

}  // namespace megadict
