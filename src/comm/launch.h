// How this process was started: ranks from MPI (never from the environment), node-local rank,
// host, the launcher's variables that matter. The only file that reads the environment is
// launch_env.cpp.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/buffer_view.h"
#include "base/error.h"
#include "comm/communicator.h"

namespace megadict {

struct LaunchFacts {
  int rank = 0, ranks = 1;
  int local_rank = 0, local_ranks = 1;  // on this node (shared memory), right under srun and mpirun
  int node = 0, nodes = 1;
  std::string host;
  std::string launcher;               // "srun", "mpirun", "none"
  int cpus = 1;                       // in this process's affinity mask
  std::vector<std::string> settings;  // "OMP_NUM_THREADS=4", ... what mattered
};

// Initialises MPI (FUNNELED) where the process was started by a launcher or MPI is wanted, and
// holds the world communicator. One per process; the destructor finalises.
class Launch {
 public:
  Launch(int* argc, char*** argv);
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  const LaunchFacts& facts() const { return facts_; }
  Communicator& world() { return *world_; }  // host memory, MPI or self
  // A world for tensors of `device`: the MPI one for cpu, a NCCL one for cuda (exit 2 and one
  // sentence where NCCL or a GPU is absent). Collective.
  Communicator& world_for(Device device);

 private:
  LaunchFacts facts_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Communicator> device_world_;
};

// Ends all ranks with `code` at once (MPI_Abort); also safe from the watchdog's thread.
[[noreturn]] void abort_all(ExitCode code);

// A value of the environment, "" where unset.
std::string environment(const char* name);

// Threads for this rank: `asked`, or the affinity mask divided by the local ranks that share it.
int resolve_threads(int asked, const LaunchFacts& facts);

}  // namespace megadict
