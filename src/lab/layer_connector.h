// H3 and H4: connectors between the latents of one hidden layer and the next, and the network that
// goes through them in place of the classifier's own layers.
#pragma once

#include <cstdint>
#include <vector>

#include "lab/connector.h"
#include "lab/layer_sae.h"

namespace megadict {

constexpr double kLargeWeight = 0.1;  // a weight that counts (H3)

struct LayerConnector {
  Connector<float> connector;
  std::vector<double> train_loss_by_epoch;
  std::vector<double> mse_by_epoch, l1_by_epoch, above_by_epoch;  // validation; from epoch 0 on
  std::vector<uint16_t> matrices;  // W as float16 before training and after each epoch
  // Latents that the connector never foretells although they are active on validation images, and
  // the part of the error that is theirs: outputs below 0 for every image have no gradient.
  double silent = 0, silent_mse = 0;
};
// Layers 1 to 2 and 2 to 3 (H3), from the closed form or U-init, on codes of true activations.
std::vector<LayerConnector> train_connectors(const BaseNetwork& base,
                                             const std::vector<LayerSae>& saes, bool closed,
                                             double lambda);

struct Accuracies {
  double base = 0, reconstructed = 0, simulated = 0;
};
// H4, on the validation images: of the classifier; with A3 replaced by its reconstruction; of
// A1 -> F1 -> F2 -> F3 through the connectors, and the decoder of layer 3.
Accuracies accuracies(const BaseNetwork& base, const std::vector<LayerSae>& saes,
                      const std::vector<const Connector<float>*>& connectors);

}  // namespace megadict
