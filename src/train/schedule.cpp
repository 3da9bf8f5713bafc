#include "train/schedule.h"

#include <algorithm>
#include <cmath>

namespace megadict {

double field_rate(int64_t latents) {
  return 2e-4 / std::sqrt(static_cast<double>(latents) / 16384);
}

double auto_rate(int64_t latents, int64_t batch, int64_t steps) {
  const double gain = std::sqrt(1e5 / static_cast<double>(std::max<int64_t>(steps, 1)));
  const double of_batch = std::pow(static_cast<double>(batch) / 2048, 0.375);
  return field_rate(latents) * std::max(1.0, std::clamp(gain, 1.0, kHighestGain) * of_batch);
}

double ramp(int64_t step, int64_t warmup) {
  if (warmup <= 0) return 1.0;
  return std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(warmup));
}

double learning_rate(double lr, int64_t step, int64_t steps, int64_t warmup,
                     double decay_fraction) {
  const auto decay_steps =
      static_cast<int64_t>(std::ceil(decay_fraction * static_cast<double>(steps)));
  double factor = ramp(step, warmup);
  if (decay_steps > 0 && step >= steps - decay_steps)
    factor = std::min(factor, static_cast<double>(steps - step) / static_cast<double>(decay_steps));
  return lr * std::max(factor, 0.0);
}

}  // namespace megadict
