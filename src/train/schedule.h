// Values that change with the step.
#pragma once

#include <cstdint>

namespace megadict {

// Linear from lr / warmup to lr over `warmup` steps, constant, then linear to 0 over the last
// `decay_fraction` of `steps`; the smaller of the two where they overlap.
double learning_rate(double lr, int64_t step, int64_t steps, int64_t warmup, double decay_fraction);

// Linear from 0 over `warmup` steps, then 1.
double ramp(int64_t step, int64_t warmup);

}  // namespace megadict
