#include "app/memory_check.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "app/control_group.h"
#include "app/plan.h"
#include "base/error.h"

namespace megadict {

namespace {

int64_t available_on_machine() {
  std::ifstream in("/proc/meminfo");
  for (std::string name; in >> name;)
    if (int64_t kib = 0; name == "MemAvailable:" && in >> kib) return kib * 1024;
  return kUnknownBytes;
}

int64_t resident_bytes() {
  std::ifstream in("/proc/self/statm");
  int64_t size = 0, pages = 0;
  return in >> size >> pages ? pages * ::sysconf(_SC_PAGESIZE) : 0;
}

// Before the process made anything large: what runs beside each other in one job share.
int64_t free_at_first() {
  static const int64_t first = free_memory();
  return first;
}

}  // namespace

int64_t free_memory() {
  const int64_t machine = available_on_machine(),
                group = available_in_group("/proc/self/cgroup", "/sys/fs/cgroup");
  if (machine < 0 || group < 0) return std::max(machine, group);
  return std::min(machine, group);
}

void check_memory(Launch& launch, const Config& config, int64_t width, int64_t sample_bytes,
                  int64_t rows) {
  if (!config.run.check_memory) return;
  const PlanInput in = plan_input(config, width, sample_bytes, rows);
  // The program's own share is taken already.
  const MemoryPlan plan = memory(in, config.mesh.data, config.mesh.feature);
  const int64_t needed = plan.peak() - std::min(plan.program, resident_bytes());
  const int64_t ranks_here = launch.facts().local_ranks;
  const int64_t free = free_at_first();
  // The tightest node decides: free bytes for each of its ranks.
  int64_t share = free < 0 ? std::numeric_limits<int64_t>::max() : free / ranks_here;
  launch.world().all_reduce(view_of(&share, 1), ReduceOp::min, "free memory");
  if (needed <= share) return;
  const int fits = feature_axis_that_fits(in, share);
  const std::string other = fits > 0
                                ? fmt::format("mesh 1x{} with as many ranks a node would fit", fits)
                                : std::string("no mesh of as many ranks a node would fit");
  fail_agreed(ExitCode::usage,
              fmt::format("a rank needs {} and {} are free for it: {}", bytes_text(needed),
                          bytes_text(share), other),
              "optim.name = adam_b1_0 keeps one moment less; --run.check_memory false tries "
              "nevertheless");
}

}  // namespace megadict
