// A job on the NCCL stand-in of which rank 1 uses NCCL wrongly, as the argument says.
#include <fmt/format.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "comm/launch.h"
#include "comm/watchdog.h"
#include "nccl_standin/nccl.h"
#include "nccl_standin/standin.h"

namespace megadict {
namespace {

std::vector<float> in(64), out(64);

void reduce(Communicator& comm, int64_t count, ReduceOp op = ReduceOp::sum) {
  comm.all_reduce(view_of(in.data(), count), op, "partial sums");
}

void gather(Communicator& comm) {
  comm.all_gather(view_of(in.data(), 2), view_of(out.data(), 2 * comm.size()), "tau");
}

void leaves_group_open(Communicator& comm, bool odd) {
  if (odd) ncclGroupStart();
  reduce(comm, 8);
}

void leaves_empty_group_open(Communicator& comm, bool odd) {
  if (odd) ncclGroupStart();
  comm.all_to_all(view_of(in.data(), 0), view_of(out.data(), 0), "codes");
}

void swaps_calls(Communicator& comm, bool odd) {
  if (odd) gather(comm);
  reduce(comm, 8);
  if (!odd) gather(comm);
}

void keeps_silent(Communicator& comm, bool odd) {
  reduce(comm, 8);
  if (odd) sleep(60);
  reduce(comm, 8);
}

void stays_away(Communicator& comm, bool odd) {
  if (odd) sleep(60);
  reduce(comm, 8);
}

void sends_too_much(Communicator& comm, bool odd) {
  std::vector<int64_t> send(static_cast<size_t>(comm.size()), 2), recv(send);
  if (odd) send[0] = 3;
  const int64_t sent = 2 * comm.size() + (odd ? 1 : 0);
  comm.all_to_all_v(view_of(in.data(), sent), send, view_of(out.data(), 2 * comm.size()), recv,
                    "codes");
}

struct Fault {
  const char* name;
  void (*run)(Communicator&, bool odd);
};

constexpr Fault kFaults[] = {
    {"open_group", leaves_group_open},
    {"open_empty_group", leaves_empty_group_open},
    {"swap", swaps_calls},
    {"count", [](Communicator& comm, bool odd) { reduce(comm, odd ? 7 : 8); }},
    {"op",
     [](Communicator& comm, bool odd) { reduce(comm, 8, odd ? ReduceOp::max : ReduceOp::sum); }},
    {"root",
     [](Communicator& comm, bool odd) { comm.broadcast(view_of(in.data(), 8), odd, "spread"); }},
    {"blocks", sends_too_much},
    {"silent", keeps_silent},
    {"absent", stays_away},
};

int run(int argc, char** argv) {
  Launch launch(&argc, &argv);
  nccl_standin::set_patience_s(1);
  DebugConfig debug;
  debug.watchdog_s = 30;
  start_watchdog(debug);
  std::vector<int32_t> pids(static_cast<size_t>(launch.world().size()));
  const int32_t pid = getpid();
  launch.world().all_gather(view_of(&pid, 1), view_of(pids.data(), launch.world().size()), "pids");
  for (const int32_t one : pids) say(fmt::format("pid {}", one));
  Communicator& world = launch.world_for(Device::cuda);
  for (const Fault& fault : kFaults)
    if (argc > 1 && std::strcmp(argv[1], fault.name) == 0) fault.run(world, world.rank() == 1);
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
