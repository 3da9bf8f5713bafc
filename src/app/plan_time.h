// How long a step takes on a mesh of machines: bytes and operations of plan.h over the rates of a
// machine file. Stages are added, nothing overlaps. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "app/machine.h"
#include "app/plan.h"

namespace megadict {

struct TimePlan {
  double encode = 0;    // seconds of a step, on each rank
  double decode = 0;    // reconstruction, residual, gradient
  double update = 0;    // gradients, optimiser, new rows
  double exchange = 0;  // all collectives
  double step() const { return encode + decode + update + exchange; }
};

// `ranks_per_node` share the machine's rates. AuxK is left out: it depends on how many are dead.
TimePlan step_time(const PlanInput& in, int data_size, int feature_size, int ranks_per_node,
                   const Machine& machine);

// Seconds of writing a checkpoint from `nodes` nodes at once, each at the machine's rate; 0 where
// that is not known.
double save_time(const PlanInput& in, int nodes, const Machine& machine);

}  // namespace megadict
