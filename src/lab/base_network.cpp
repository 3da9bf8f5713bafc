#include "lab/base_network.h"

#include <nlohmann/json.hpp>

namespace megadict {

namespace {

// Loss and share that is right; the hidden activations go to `hidden` where it is given.
struct Judged {
  double loss = 0, right = 0;
};
Judged judge(const Classifier<float>& net, const Images& images, std::vector<Rows>* hidden) {
  ClassifierPass<float> pass;
  Tiles<float> x;
  Judged judged;
  const auto count = static_cast<double>(images.count());
  for_pieces(images.count(), kPiece, [&](std::span<const int32_t> which) {
    const auto samples = static_cast<int64_t>(which.size());
    const std::vector<uint8_t> labels = labels_of(images, which);
    fit(x, samples, kPixels);
    gather_images(images, which, x);
    net.forward(x, pass);
    const double loss = cross_entropy<float>(pass.logits, labels, nullptr);
    judged.loss += loss * static_cast<double>(samples) / count;
    judged.right += static_cast<double>(count_correct(pass.logits, labels)) / count;
    if (hidden == nullptr) return;
    for (size_t l = 0; l < hidden->size(); ++l) store_rows(pass.hidden[l], which[0], (*hidden)[l]);
  });
  return judged;
}

}  // namespace

nlohmann::ordered_json settings_json(const NetworkSettings& s) {
  return {{"data", s.split.test_file_alone ? "mnist t10k" : "mnist"},
          {"train", s.split.train},
          {"validation", s.split.validation},
          {"classifier_epochs", s.classifier_epochs},
          {"epochs", s.epochs},
          {"max_steps", s.max_steps},
          {"latents", s.latents},
          {"rate", s.rate},
          {"seed", s.seed}};
}

uint64_t seed_of(const NetworkSettings& s, uint64_t part) {
  constexpr uint64_t kParts = 16;
  return s.seed * kParts + part;
}

Minibatches batches_of(const NetworkSettings& s, int64_t epochs, uint64_t part) {
  return {.epochs = epochs, .max_steps = s.max_steps, .rate = s.rate, .seed = seed_of(s, part)};
}

std::vector<uint8_t> labels_of(const Images& images, std::span<const int32_t> which) {
  std::vector<uint8_t> labels;
  for (const int32_t i : which) labels.push_back(images.labels[static_cast<size_t>(i)]);
  return labels;
}

BaseNetwork train_base(const NetworkSettings& s, const std::string& mnist_folder) {
  std::vector<int64_t> sizes = {kPixels};
  sizes.insert(sizes.end(), kLayers, kNeurons);
  sizes.push_back(kDigits);
  BaseNetwork base{
      s, read_mnist(mnist_folder, s.split), {sizes, seed_of(s, kClassifier)}, {}, {}, {}, {}, {}};
  AdamOfAll adam(s.rate);
  ClassifierPass<float> pass;
  Tiles<float> x;
  const auto step = [&](std::span<const int32_t> which) {
    fit(x, static_cast<int64_t>(which.size()), kPixels);
    gather_images(base.data.train, which, x);
    const double loss = base.net.gradients(x, labels_of(base.data.train, which), pass);
    adam.step(base.net.parameters());
    return loss;
  };
  for_batches(s.split.train, batches_of(s, s.classifier_epochs, kClassifier), step,
              [&](double loss) {
                const Judged judged = judge(base.net, base.data.validation, nullptr);
                base.train_loss_by_epoch.push_back(loss);
                base.loss_by_epoch.push_back(judged.loss);
                base.right_by_epoch.push_back(judged.right);
              });
  base.train.assign(kLayers, Rows(s.split.train, kNeurons));
  base.validation.assign(kLayers, Rows(s.split.validation, kNeurons));
  judge(base.net, base.data.train, &base.train);
  judge(base.net, base.data.validation, &base.validation);
  return base;
}

}  // namespace megadict
