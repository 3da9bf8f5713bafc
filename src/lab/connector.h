// H2 and H3: a feature connector, which foretells the latents of one layer from those of the layer
// before, F2 ~ ReLU(W F1 + b); gradients by hand.
#pragma once

#include <cstdint>

#include "lab/layers.h"
#include "lab/small_sae.h"

namespace megadict {

template <class T>
struct ConnectorPass {
  Tiles<T> codes, d_codes;  // what it foretells
};

// mse: mean over both axes. weight: mean |W|.
struct ConnectorLoss {
  double total = 0, mse = 0, weight = 0;
};

template <class T>
struct Connector {
  Linear<T> map;  // [latents of the next layer, latents of this one]

  void forward(const Tiles<T>& from, Tiles<T>& to) const;
  // mse + lambda weight, b not penalised. `to`: the codes to be foretold. Gradients are
  // overwritten; that of |0| is 0.
  ConnectorLoss gradients(const Tiles<T>& from, const Tiles<T>& to, double lambda,
                          ConnectorPass<T>& pass);
};

// U-init.
template <class T>
Connector<T> random_connector(int64_t latents, uint64_t seed);
// W = E2 W_layer D1, b = E2 b_layer + e2: exact where the layer's own ReLU cuts nothing.
template <class T>
Connector<T> closed_connector(const SmallSae<T>& before, const Linear<T>& layer,
                              const SmallSae<T>& after);

// Reconstruction of codes by an autoencoder's decoder.
template <class T>
void decode(const SmallSae<T>& sae, const Tiles<T>& codes, Tiles<T>& x_hat);

// Entries above `threshold` in absolute value.
int64_t count_above(const Learnt<float>& weight, double threshold);

}  // namespace megadict
