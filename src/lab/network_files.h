// What a network of features leaves for a drawing program beside its numbers, as .npy files in one
// folder. P, L, C count drawn latents (16), layers (3), top images (10).
//
//   connector_12.npy, connector_23.npy  f16 [epochs + 1, 256, 256]  W before training and after
//                                       each epoch, row = latent of the later layer
//   neurons_12.npy, neurons_23.npy      f32 [64, 64]  the classifier's weights of the same layers
//   decoders.npy         f32 [L, 64, 256]     direction of each latent, one a column
//   latent_top.npy       i32 [L, 256, C]      validation images that activate a latent most,
//                                             strongest first; -1 where fewer activate it
//   neuron_top.npy       i32 [L, 64, C]       the same of the neurons
//   latents_drawn.npy    i32 [L, P]           the latents of largest mean activation
//   latent_images.npy    u8 [L, P, C, 28, 28] their top images; black where there is none
//   neuron_images.npy    u8 [L, P, C, 28, 28] those of neurons 0 to 15
//   latent_pixels.npy    f32 [P, 28, 28]      of layer 1's drawn latents: encoder row times the
//                                             classifier's first weights, what it looks for
//   example_neurons.npy  f32 [L, 2, 64]       of the first validation image: true, reconstructed
//   example_latents.npy  f32 [L, 256]         its latents
#pragma once

#include <string>
#include <vector>

#include "lab/layer_connector.h"

namespace megadict {

void write_network_files(const std::string& folder, const BaseNetwork& base,
                         const std::vector<LayerSae>& saes,
                         const std::vector<LayerConnector>& connectors);

}  // namespace megadict
