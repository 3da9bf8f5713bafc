#include "lab/minibatches.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/philox.h"

namespace megadict {

namespace {

void shuffle(std::vector<int32_t>& order, uint64_t seed, int64_t epoch) {
  const Rng rng{seed, Purpose::lab_draw, static_cast<uint64_t>(epoch)};
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.bits64(i) % i]);
}

}  // namespace

void for_batches(int64_t samples, const Minibatches& how,
                 const std::function<double(std::span<const int32_t>)>& step,
                 const std::function<void(double)>& after_epoch) {
  std::vector<int32_t> order(static_cast<size_t>(samples));
  const auto batch = static_cast<size_t>(how.batch);
  int64_t steps = 0;
  for (int64_t epoch = 0; epoch < how.epochs; ++epoch) {
    shuffle(order, how.seed, epoch);
    double sum = 0;
    int64_t batches = 0;
    for (size_t begin = 0; begin < order.size(); begin += batch) {
      if (how.max_steps > 0 && steps == how.max_steps) break;
      const std::span<const int32_t> which(order.data() + begin,
                                           std::min(batch, order.size() - begin));
      const double loss = step(which);
      if (!std::isfinite(loss))
        fail(ExitCode::diverged, fmt::format("the loss of step {} is not finite", steps));
      sum += loss;
      ++batches;
      ++steps;
    }
    if (batches == 0) return;
    after_epoch(sum / static_cast<double>(batches));
  }
}

void for_pieces(int64_t samples, int64_t piece,
                const std::function<void(std::span<const int32_t>)>& work) {
  std::vector<int32_t> order(static_cast<size_t>(samples));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t begin = 0; begin < samples; begin += piece)
    work({order.data() + begin, static_cast<size_t>(std::min(piece, samples - begin))});
}

void AdamOfAll::step(const std::vector<Learnt<float>*>& parameters) {
  adam_.resize(parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) adam_[i].step(*parameters[i], {.rate = rate_});
}

}  // namespace megadict
