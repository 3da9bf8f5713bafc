// Training in small batches: the order of the samples, Adam for every parameter, and what each
// epoch gave.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lab/layers.h"

namespace megadict {

struct Minibatches {
  int64_t epochs = 15, batch = 64;  // batch: a multiple of kLane
  int64_t max_steps = 0;            // ends earlier; 0 = no
  double rate = 1e-3;
  uint64_t seed = 0;
};

// Calls `step` with the samples of each batch, every epoch in another random order that follows
// from (seed, epoch), the last batch of an epoch smaller where it has to be. `step` returns the
// batch's loss; `after_epoch` gets the mean over the epoch's batches. samples: a multiple of kLane.
// Exit 4 with the step where a loss is not finite.
void for_batches(int64_t samples, const Minibatches& how,
                 const std::function<double(std::span<const int32_t> which)>& step,
                 const std::function<void(double mean_loss)>& after_epoch);

// 0, 1, 2, ... in pieces of at most `piece`, for what is not trained.
void for_pieces(int64_t samples, int64_t piece,
                const std::function<void(std::span<const int32_t> which)>& work);

// One Adam a parameter.
class AdamOfAll {
 public:
  explicit AdamOfAll(double rate) : rate_(rate) {}
  void step(const std::vector<Learnt<float>*>& parameters);

 private:
  double rate_;
  std::vector<Adam<float>> adam_;
};

}  // namespace megadict
