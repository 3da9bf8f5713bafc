// Values that change with the step.
#pragma once

#include <cstdint>

namespace megadict {

// Values of optim.lr that stand for a rule.
inline constexpr double kAutoRate = -1e9, kFieldRate = -2e9;

// The field's rule, made for runs of 10^5 steps: 2e-4 / sqrt(n / 2^14).
double field_rate(int64_t latents);
// What short runs want (README, "Learning rate"): the field's rule times sqrt(10^5 / steps), at
// least 1 and at most kHighestGain, times (batch / 2048)^(3/8); never less than the field's rule.
inline constexpr double kHighestGain = 16;
double auto_rate(int64_t latents, int64_t batch, int64_t steps);

// Linear from lr / warmup to lr over `warmup` steps, constant, then linear to 0 over the last
// `decay_fraction` of `steps`; the smaller of the two where they overlap.
double learning_rate(double lr, int64_t step, int64_t steps, int64_t warmup, double decay_fraction);

// Linear from 0 over `warmup` steps, then 1.
double ramp(int64_t step, int64_t warmup);

}  // namespace megadict
