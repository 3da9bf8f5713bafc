// Ends a hung job: a thread per rank is told the name of every collective before it starts; one
// that lasts longer than the limit ends all ranks with exit 5 and one line that names collective,
// axis, step and the ranks of this node that are behind (ranks post (step, collective) in a
// node-shared MPI window).
#pragma once

#include <cstdint>
#include <string>

namespace megadict {

struct DebugConfig {
  double watchdog_s = 600;         // 0 = no watchdog
  bool check_collectives = false;  // ranks compare a hash of (name, op, count, type) before each
  int hang_rank = -1;              // this rank stops in the collective named below
  std::string hang_at;             // "" = the first one; "NAME" or "NAME:STEP"
};

// Starts the thread and the window. Collective over world (MPI's world when there is one).
void start_watchdog(const DebugConfig& config);
void stop_watchdog();
// The training step that collectives now belong to; shown in messages. -1 = set-up.
void set_watchdog_step(int64_t step);

}  // namespace megadict
