// B2 and H2: an autoencoder for each hidden layer of the classifier.
#pragma once

#include <string_view>
#include <vector>

#include "lab/base_network.h"
#include "lab/small_sae.h"

namespace megadict {

// B2, and the two untied kinds of L2c: own decoder, columns unit or free. An encoder bias, no
// output bias, U-init throughout.
enum class DecoderKind { tied, unit_columns, free };
std::string_view name_of(DecoderKind kind);

struct LayerSae {
  SmallSae<float> sae;
  std::vector<double> train_loss_by_epoch, mse_by_epoch, l1_by_epoch;  // the latter of validation
  // On the validation images: mean z, active latents of 256, latents above .3, of the first image
  // also alone.
  double mse = 0, l1 = 0, active = 0, above = 0, above_in_first = 0;
};
// Of layers 1 to 3. Loss: mean over both axes of (x_hat - x)^2 + lambda |z|.
std::vector<LayerSae> train_saes(const BaseNetwork& base, DecoderKind kind, double lambda);
Rows codes_of(const SmallSae<float>& sae, const Rows& activations);

}  // namespace megadict
