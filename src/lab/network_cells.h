// What the experiments on MNIST build their cells from.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lab/experiment.h"
#include "lab/layer_connector.h"

namespace megadict {

// Run `seed`, counted from 0, of what is asked for. scale.quick: 8,000 images train and 2,000
// validate, all of the test file, 15 epochs throughout; else 60,000 and 10,000, 25 epochs of the
// classifier. Exit 2 for numbers of the synthetic problem (width, k, lambda, zipf).
NetworkSettings network_settings(const LabScale& scale, int64_t seed);
// For LabExperiment::check.
void check_mnist(const LabScale& scale);

// What the cells of one process begin with alike: the last classifier and the last autoencoders
// stay, since cells of the same ones come after each other. What a cell gives does not depend on
// whether they were there.
class NetworkWorkshop {
 public:
  explicit NetworkWorkshop(std::string mnist) : mnist_(std::move(mnist)) {}
  const BaseNetwork& base(const NetworkSettings& settings);
  const std::vector<LayerSae>& saes(const NetworkSettings& settings, DecoderKind kind,
                                    double lambda);

 private:
  std::string mnist_;
  std::string base_key_ = {}, saes_key_ = {};
  std::optional<BaseNetwork> base_ = {};
  std::vector<LayerSae> saes_ = {};
};

// About, on one core: a classifier, the three autoencoders, the two connectors.
struct NetworkCost {
  double base_s, saes_s, connectors_s;
};
NetworkCost cost_of(const NetworkSettings& settings);

std::vector<const Connector<float>*> connectors_of(const std::vector<LayerConnector>& layers);

}  // namespace megadict
