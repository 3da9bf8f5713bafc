// H1: the MNIST classifier (A7) whose hidden layers are then taken apart, and its hidden
// activations. Each step of the network of features (this file, layer_sae.h, layer_connector.h)
// follows from its settings alone, with one thread.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "lab/classifier.h"
#include "lab/minibatches.h"
#include "lab/mnist.h"

namespace megadict {

struct NetworkSettings {
  MnistSplit split;
  int64_t classifier_epochs = 25, epochs = 15;  // epochs: of autoencoders and connectors
  int64_t max_steps = 0;                        // of each training; 0 = by epochs alone
  int64_t latents = 256;
  double rate = 1e-3;
  uint64_t seed = 1;
};
nlohmann::ordered_json settings_json(const NetworkSettings& settings);

constexpr size_t kLayers = 3;     // hidden layers
constexpr int64_t kNeurons = 64;  // of each
constexpr int64_t kPiece = 512;   // samples at a time where nothing is trained

// Which training a number belongs to: their draws share nothing. kSae + layer, kConnector + layer.
enum NetworkPart : uint64_t { kClassifier = 0, kSae = 1, kConnector = 8 };
uint64_t seed_of(const NetworkSettings& settings, uint64_t part);
Minibatches batches_of(const NetworkSettings& settings, int64_t epochs, uint64_t part);

struct BaseNetwork {
  NetworkSettings settings;
  Mnist data;
  Classifier<float> net;
  std::vector<Rows> train, validation;  // hidden activations after the ReLU, A1 to A3
  // After each epoch: training loss; validation loss and share that is right.
  std::vector<double> train_loss_by_epoch, loss_by_epoch, right_by_epoch;
};
// Exit 3 for the data, 4 where the loss is not finite.
BaseNetwork train_base(const NetworkSettings& settings, const std::string& mnist_folder);

std::vector<uint8_t> labels_of(const Images& images, std::span<const int32_t> which);

}  // namespace megadict
