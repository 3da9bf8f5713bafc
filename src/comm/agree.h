// One rank's error becomes everybody's, so that all unwind from the same point and may go on with
// something else: what a sweep does after a point that failed.
#pragma once

#include <functional>

#include "base/stop_request.h"
#include "comm/communicator.h"

namespace megadict {

// Runs `work`, which calls no collective of `world`, on every rank. An Error that some rank throws
// (of several the lowest rank's) is thrown on all of them, agreed; its text names the rank.
// Collective.
void agree(Communicator& world, const std::function<void()>& work);

// The strongest request that has reached any rank, so that all leave together. Collective.
StopRequest agreed_stop(Communicator& world);

}  // namespace megadict
