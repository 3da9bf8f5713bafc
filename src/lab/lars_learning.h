// C8: traditional dictionary learning, as appendix F of arXiv 2411.13117 runs scikit-learn's:
// signed codes by least-angle regression with the lasso's drops, atoms by block coordinates, in
// turn.
#pragma once

#include "lab/layers.h"

namespace megadict {

struct LarsLearning {
  int64_t latents = 16;
  double lambda = 1;  // of the lasso while learning; codes of new samples have one of their own
  int64_t rounds = 1000;
  double still = 1e-8;  // it ends where the objective changes by less, relatively
  uint64_t seed = 0;
};

// Signed: codes of the atoms and of their negatives, which the lasso never takes together.
Tiles<float> signed_lars_codes(const Learnt<float>& dictionary, const Tiles<float>& x,
                               double lambda);

// Starts from distinct samples at unit length.
Learnt<float> learn_by_lars(const Tiles<float>& x, const LarsLearning& settings);

}  // namespace megadict
