#include "lab/network_cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace megadict {

NetworkSettings network_settings(const LabScale& scale, int64_t seed) {
  if (scale.width > 0 || scale.k > 0 || scale.lambda > 0 || scale.zipf > 0)
    fail_agreed(ExitCode::usage, "width, k, lambda and zipf are the synthetic problem's",
                "an experiment on MNIST takes --samples, --latents, --steps, --rate, --seeds");
  NetworkSettings s;
  if (scale.quick) s.split = {8000, 2000, true};
  if (scale.quick) s.classifier_epochs = 15;
  if (scale.samples > 0) s.split = {scale.samples / 2, scale.samples / 2, true};
  if (scale.latents > 0) s.latents = scale.latents;
  if (scale.rate > 0) s.rate = scale.rate;
  s.max_steps = scale.steps;
  s.seed = static_cast<uint64_t>(seed) + 1;
  return s;
}

void check_mnist(const LabScale& scale) {
  find_mnist(scale.mnist);
}

const BaseNetwork& NetworkWorkshop::base(const NetworkSettings& settings) {
  const std::string key = settings_json(settings).dump();
  if (key == base_key_) return *base_;
  base_key_.clear();
  base_.emplace(train_base(settings, find_mnist(mnist_)));
  base_key_ = key;
  return *base_;
}

const std::vector<LayerSae>& NetworkWorkshop::saes(const NetworkSettings& settings,
                                                   DecoderKind kind, double lambda) {
  const std::string key =
      fmt::format("{} {} {}", settings_json(settings).dump(), name_of(kind), lambda);
  if (key == saes_key_) return saes_;
  saes_key_.clear();
  saes_ = train_saes(base(settings), kind, lambda);
  saes_key_ = key;
  return saes_;
}

NetworkCost cost_of(const NetworkSettings& s) {
  const auto passes = [&](int64_t epochs) {
    const double all = static_cast<double>(s.split.train * epochs);
    constexpr double kBatch = 64;
    return s.max_steps > 0 ? std::min(all, kBatch * static_cast<double>(s.max_steps)) : all;
  };
  constexpr double kClassifier = 7.5e-6, kSaes = 16e-6, kConnectors = 28e-6;  // an image, measured
  return {kClassifier * passes(s.classifier_epochs), kSaes * passes(s.epochs),
          kConnectors * passes(s.epochs)};
}

std::vector<const Connector<float>*> connectors_of(const std::vector<LayerConnector>& layers) {
  std::vector<const Connector<float>*> connectors;
  for (const LayerConnector& layer : layers) connectors.push_back(&layer.connector);
  return connectors;
}

}  // namespace megadict
