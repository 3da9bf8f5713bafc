// A small job, over MPI or the NCCL stand-in, of which one rank misbehaves as the first argument
// says; comm_faults_test.cpp starts it and looks at how it ends. Later arguments: the rank, and a
// value where the fault needs one.
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "comm/launch.h"
#include "comm/mesh.h"
#include "comm/watchdog.h"
#include "support/mpi_main.h"

namespace megadict {
namespace {

struct Job {
  Launch& launch;
  Communicator& world;
  Communicator& feature;
  int rank;  // that misbehaves
  std::string value;
  bool odd() const { return world.rank() == rank; }
};

std::vector<float> numbers(64, 1.0f);

void reduce(Communicator& comm, int64_t count, const char* name, ReduceOp op = ReduceOp::sum) {
  comm.all_reduce(view_of(numbers.data(), count), op, name);
}

void sleeps(Job& job) {
  if (job.odd()) sleep(60);
  reduce(job.feature, 8, "partial sums");
}

// In the middle of a collective of two halves, too large to go without it.
void computes(Job& job) {
  const int64_t count = int64_t{1} << 22;
  std::vector<float> mine(static_cast<size_t>(count)),
      all(static_cast<size_t>(count * job.world.size()));
  Pending rows = job.feature.start_all_gather(
      view_of(mine.data(), count), view_of(all.data(), count * job.world.size()), "rows");
  if (job.odd() && job.value == "fails") fail(ExitCode::bad_data, "this rank cannot go on");
  if (job.odd()) sleep(60);
  rows.wait();
}

void stops(Job& job) {
  if (job.odd()) raise(SIGSTOP);
  reduce(job.feature, 8, "partial sums");
}

void leaves(Job& job) {
  if (!job.odd()) reduce(job.feature, 8, "partial sums");
}

void fails_alone(Job& job) {
  if (job.odd())
    fail(static_cast<ExitCode>(std::atoi(job.value.c_str())), "this rank cannot go on", "none");
  reduce(job.world, 8, "partial sums");
}

void fails_agreed(Job& job) {
  fail_agreed(static_cast<ExitCode>(std::atoi(job.value.c_str())), "nobody can go on");
}

void all_fail(Job& job) {
  fail(static_cast<ExitCode>(std::atoi(job.value.c_str())), "every rank finds the same file torn");
}

void stops_in_mismatch(Job& job) {
  if (job.value == "name") reduce(job.feature, 8, job.odd() ? "other sums" : "partial sums");
  if (job.value == "count") reduce(job.feature, job.odd() ? 7 : 8, "partial sums");
  if (job.value == "op")
    reduce(job.feature, 8, "partial sums", job.odd() ? ReduceOp::max : ReduceOp::sum);
  if (job.value == "kind" && job.odd()) job.feature.barrier("partial sums");
  if (job.value == "kind" && !job.odd()) reduce(job.feature, 8, "partial sums");
  if (job.value == "type") {
    std::vector<int32_t> integers(8);
    if (job.odd()) job.feature.all_reduce(view_of(integers.data(), 8), ReduceOp::sum, "sums");
    if (!job.odd()) reduce(job.feature, 8, "sums");
  }
  if (job.value == "root") job.feature.broadcast(view_of(numbers.data(), 8), job.odd(), "spread");
  if (job.value == "blocks") {
    const auto ranks = static_cast<size_t>(job.world.size());
    const std::vector<int64_t> send(ranks, job.odd() ? 3 : 2);
    std::vector<int64_t> recv(ranks, 2);
    recv[static_cast<size_t>(job.world.rank())] = send[0];
    int64_t received = 0;
    for (const int64_t count : recv) received += count;
    std::vector<float> in(ranks * 3), out(ranks * 3);
    job.world.all_to_all_v(view_of(in.data(), send[0] * job.world.size()), send,
                           view_of(out.data(), received), recv, "codes");
  }
}

// Ten steps of two collectives.
void works(Job& job) {
  for (int64_t step = 0; step < 10; ++step) {
    set_watchdog_step(step);
    reduce(job.feature, 8, "partial sums");
    reduce(job.world, 8, "loss");
  }
}

void asks_for_gpus(Job& job) {
  if (job.world.rank() == 0) say("support: " + gpu_support());
  job.launch.world_for(Device::cuda);
}

struct Fault {
  const char* name;
  void (*run)(Job&);
};

constexpr Fault kFaults[] = {
    {"sleeps", sleeps},     {"stops", stops},         {"leaves", leaves},
    {"fails", fails_alone}, {"agreed", fails_agreed}, {"mismatch", stops_in_mismatch},
    {"works", works},       {"gpus", asks_for_gpus},  {"all_fail", all_fail},
    {"computes", computes},
};

int run(int argc, char** argv) {
  Launch launch(&argc, &argv);
  const std::string fault = argc > 1 ? argv[1] : "works";
  DebugConfig debug;
  debug.watchdog_s = 1.5;
  debug.check_collectives = fault == "mismatch";
  if (fault == "works" && argc > 3) {
    debug.hang_rank = std::atoi(argv[2]);
    debug.hang_at = argv[3];
  }
  start_watchdog(debug);
  // Every rank's line is out before a fault ends the job.
  std::vector<int32_t> pids(static_cast<size_t>(launch.world().size()));
  const int32_t pid = getpid();
  launch.world().all_gather(view_of(&pid, 1), view_of(pids.data(), launch.world().size()), "pids");
  for (const int32_t one : pids) say(fmt::format("pid {}", one));
  Communicator& world = launch.world_for(test_device());
  Mesh mesh = make_mesh(world, {1, 0});
  set_watchdog_step(12);
  Job job{launch, world, *mesh.feature, argc > 2 ? std::atoi(argv[2]) : -1,
          argc > 3 ? argv[3] : ""};
  for (const Fault& row : kFaults)
    if (fault == row.name) row.run(job);
  say("end");
  return 0;
}

}  // namespace
}  // namespace megadict

int main(int argc, char** argv) {
  try {
    return megadict::run(argc, argv);
  } catch (const megadict::Error& error) {
    megadict::abort_with(error);
  }
}
