// How this process was started: ranks from MPI (never from the environment), node-local rank,
// host, the launcher's variables that matter. The only file that reads the environment is
// launch_env.cpp.
//
//   int main(int argc, char** argv) {
//     try {
//       Launch launch(&argc, &argv);
//       return run(launch);
//     } catch (const Error& error) {
//       abort_with(error);  // one line, every rank ends with the error's code
//     }
//   }
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
  std::string launcher;  // "srun", "mpirun", "none"
  int cpus = 1;          // in this process's affinity mask
  int cpus_least = 1;    // the smallest of all ranks' masks
  int cpu_sharers = 1;   // ranks of this node whose masks overlap with this one's
  int gpu = -1;          // of this rank, once world_for(Device::cuda) chose it
  std::string gpu_pci_id;
  std::vector<std::string> settings;  // "OMP_NUM_THREADS=4", ... what mattered
};

// Initialises MPI (FUNNELED) where the environment shows a launcher (or says MEGADICT_MPI=1), and
// holds the world communicator; without one the world is this process alone and MPI is left
// untouched. Refuses (exit 2) an srun whose tasks MPI does not see. One per process; the destructor
// leaves together with the other ranks and finalises, except while an exception unwinds: then its
// catcher must end the ranks with abort_with().
class Launch {
 public:
  Launch(int* argc, char*** argv);
  // A part of `whole`: the ranks of equal `color` with a world of their own, for work that is this
  // part's alone; threads, GPU and the like stay what they were. `whole` outlives it. Collective
  // over `whole`.
  Launch(Launch& whole, int color);
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  const LaunchFacts& facts() const { return facts_; }
  Communicator& world() { return *world_; }  // host memory, MPI or self
  // A world for tensors of `device`: the MPI one for cpu, a NCCL one for cuda (exit 2 and one
  // sentence where NCCL or a GPU is absent, or two ranks of a node would share one). It makes the
  // rank's GPU the current one: visible == 1 ? 0 : local_rank % visible. Collective.
  Communicator& world_for(Device device);

 private:
  LaunchFacts facts_;
  bool is_part_ = false;
  int exceptions_ = 0;  // in flight when this was made
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Communicator> device_world_;
};

// Ends all ranks with `code` at once (MPI_Abort); also safe from the watchdog's thread, and it
// ends ranks that are stopped (SIGSTOP). Alone it finalises and leaves.
[[noreturn]] void abort_all(ExitCode code);

// Prints the error's line (rank 0 alone if the error is agreed, else the first rank of a node that
// fails) and ends all ranks with its code.
[[noreturn]] void abort_with(const Error& error);

// For `megadict info`: "NCCL 2.28.9, GPUs 0000:17:00.0, ...", or why there is none.
std::string gpu_support();

// A value of the environment, "" where unset.
std::string environment(const char* name);

// Threads for this rank: `asked`, else OMP_NUM_THREADS where it is set, else the affinity mask
// divided by the local ranks that share it. A mask smaller than `asked` is one warning line.
int resolve_threads(int asked, const LaunchFacts& facts);

}  // namespace megadict
