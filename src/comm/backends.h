// The kinds of Communicator behind the interface; only this room (and its tests) includes this.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/launch.h"

namespace megadict {

// What a collective left under way (Pending). Dropped unfinished only when the job ends.
class Underway {
 public:
  virtual ~Underway() = default;
  virtual void poll() noexcept = 0;  // moves what can move now; errors are kept for finish()
  virtual void finish() = 0;         // until all is done
};

// One rank, host memory, no MPI needed.
std::unique_ptr<Communicator> make_self_communicator(const std::string& axis);

// A duplicate of MPI's world; MPI must be initialised. Collective.
std::unique_ptr<Communicator> make_mpi_world();

// Between MPI_Init and MPI_Finalize.
bool mpi_running();
// Ranks of MPI's world, 1 without MPI.
int launched_ranks();

// NCCL over the ranks of `host` (self or MPI): chooses this rank's GPU and writes it into `facts`.
// Exit 2, agreed, where there is no GPU, two ranks of a node share one, or NCCL is not compiled in.
// Collective.
std::unique_ptr<Communicator> make_device_world(Communicator& host, LaunchFacts& facts);

// Largest number of elements in one MPI call (counts are C ints there). Tests lower it to drive
// the paths of vectors beyond 2^31 elements.
int64_t mpi_chunk_elements();
void set_mpi_chunk_elements(int64_t elements);

}  // namespace megadict
