// Between Communicator and the watchdog; only this room includes this.
#pragma once

#include <cstdint>
#include <string>

#include "base/buffer_view.h"

namespace megadict {

struct WatchedCall {
  const char* kind;  // "all_gather"
  const char* name;  // what it is for
  const char* axis;
  uint64_t communicator;  // the same on all its members, unlike any other's
  int64_t arrivals;       // calls of this rank on it, this one included
};

inline constexpr uint64_t kWorldCommunicator = 1;
inline constexpr uint64_t kLeavingTogether = 2;  // the meeting of stop_watchdog()

// Around each call; a call inside a call is not watched. enter_call parks the rank that
// debug.hang_rank names.
void enter_call(const WatchedCall& call);
void leave_call();
// A communicator begins with 0 arrivals and ends.
void announce_communicator(uint64_t communicator);
void forget_communicator(uint64_t communicator);
// "step 12", or "set-up".
std::string step_text(int64_t step);

// True while debug.check_collectives is on.
bool checking_collectives();

// True for the first rank of a node that asks (each rank where no watchdog runs): it says why the
// job ends, so that ranks that fail alike at the same time do not all say it.
bool first_to_speak();

// Called by the watchdog's thread before it ends all ranks, for at most two seconds: NCCL stops its
// kernels. Keyed by `owner`.
void add_abort_hook(void* owner, void (*hook)(void*));
void remove_abort_hook(void* owner);

}  // namespace megadict
