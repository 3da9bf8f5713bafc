// Ends a hung job: a thread per rank is told the name of every collective before it starts; one
// that lasts longer than the limit ends all ranks with exit 5 and one line per node that names
// collective, axis, step and the ranks of the node that are behind (ranks post what they do in a
// node-shared MPI window). The other aids of `debug.*` live here too; README.md explains them.
#pragma once

#include <cstdint>
#include <string>

namespace megadict {

struct DebugConfig {
  double watchdog_s = 600;         // 0 = no watchdog
  bool check_collectives = false;  // ranks compare (name, op, count, type) before each
  int hang_rank = -1;              // this rank stops in the collective named below
  std::string hang_at;             // "" = the first one; "NAME" or "NAME:STEP"
};

// Starts the thread and the window; refuses (exit 2, agreed) values out of range. Collective over
// MPI's world where there is one. Once per Launch, before the first communicator is split.
void start_watchdog(const DebugConfig& config);
// Collective like the start; ~Launch does it where it was forgotten.
void stop_watchdog();
// The training step that collectives now belong to; shown in messages. -1 = set-up.
void set_watchdog_step(int64_t step);

}  // namespace megadict
