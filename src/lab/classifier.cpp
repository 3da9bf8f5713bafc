#include "lab/classifier.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace megadict {

template <class T>
Classifier<T>::Classifier(const std::vector<int64_t>& sizes, uint64_t seed) {
  constexpr uint64_t kBiasStream = 2000;
  for (size_t i = 0; i + 1 < sizes.size(); ++i) {
    Linear<T> layer{{fmt::format("W.{}", i), sizes[i + 1], sizes[i]},
                    {fmt::format("b.{}", i), sizes[i + 1], 1}};
    draw_uniform(layer.weight, sizes[i], seed, i);
    draw_uniform(layer.bias, sizes[i], seed, kBiasStream + i);
    layers_.push_back(std::move(layer));
  }
}

template <class T>
void Classifier<T>::forward(const Tiles<T>& x, ClassifierPass<T>& pass) const {
  pass.hidden.resize(layers_.size() - 1);
  const Tiles<T>* from = &x;
  for (size_t i = 0; i + 1 < layers_.size(); ++i) {
    Tiles<T>& to = pass.hidden[i];
    fit(to, x.samples(), layers_[i].weight.rows);
    layers_[i].forward(*from, to);
    for (T& value : to.values()) value = std::max(value, T{0});
    from = &to;
  }
  fit(pass.logits, x.samples(), layers_.back().weight.rows);
  layers_.back().forward(*from, pass.logits);
}

template <class T>
double Classifier<T>::gradients(const Tiles<T>& x, std::span<const uint8_t> labels,
                                ClassifierPass<T>& pass) {
  forward(x, pass);
  for (Learnt<T>* p : parameters()) std::fill(p->gradient.begin(), p->gradient.end(), T{0});
  fit(pass.d_logits, x.samples(), pass.logits.features());
  const double loss = cross_entropy(pass.logits, labels, &pass.d_logits);
  pass.d_hidden.resize(pass.hidden.size());
  const Tiles<T>* dy = &pass.d_logits;
  for (size_t i = layers_.size() - 1; i > 0; --i) {
    const Tiles<T>& input = pass.hidden[i - 1];
    Tiles<T>& dx = pass.d_hidden[i - 1];
    fit(dx, x.samples(), input.features());
    layers_[i].backward(input, *dy, &dx);
    for (size_t v = 0; v < dx.values().size(); ++v)
      dx.values()[v] = input.values()[v] > 0 ? dx.values()[v] : T{0};
    dy = &dx;
  }
  layers_[0].backward(x, *dy, nullptr);
  return loss;
}

template <class T>
std::vector<Learnt<T>*> Classifier<T>::parameters() {
  std::vector<Learnt<T>*> all;
  for (Linear<T>& layer : layers_) {
    all.push_back(&layer.weight);
    all.push_back(&layer.bias);
  }
  return all;
}

template <class T>
double cross_entropy(const Tiles<T>& logits, std::span<const uint8_t> labels, Tiles<T>* d_logits) {
  const auto samples = static_cast<double>(logits.samples());
  double loss = 0;
  std::vector<double> shares(static_cast<size_t>(logits.features()));
  for (int64_t i = 0; i < logits.samples(); ++i) {
    double largest = logits.at(i, 0), sum = 0;
    for (int64_t c = 1; c < logits.features(); ++c)
      largest = std::max(largest, static_cast<double>(logits.at(i, c)));
    for (int64_t c = 0; c < logits.features(); ++c)
      sum += shares[static_cast<size_t>(c)] = std::exp(logits.at(i, c) - largest);
    const int64_t label = labels[static_cast<size_t>(i)];
    loss -= (logits.at(i, label) - largest - std::log(sum)) / samples;
    if (d_logits == nullptr) continue;
    for (int64_t c = 0; c < logits.features(); ++c)
      d_logits->at(i, c) =
          static_cast<T>((shares[static_cast<size_t>(c)] / sum - (c == label ? 1 : 0)) / samples);
  }
  return loss;
}

int64_t count_correct(const Tiles<float>& logits, std::span<const uint8_t> labels) {
  int64_t correct = 0;
  for (int64_t i = 0; i < logits.samples(); ++i) {
    int64_t best = 0;
    for (int64_t c = 1; c < logits.features(); ++c)
      if (logits.at(i, c) > logits.at(i, best)) best = c;
    if (best == labels[static_cast<size_t>(i)]) ++correct;
  }
  return correct;
}

#define MEGADICT_CLASSIFIER_OF(T)    \
  template struct ClassifierPass<T>; \
  template class Classifier<T>;      \
  template double cross_entropy(const Tiles<T>&, std::span<const uint8_t>, Tiles<T>*);

MEGADICT_CLASSIFIER_OF(float)
MEGADICT_CLASSIFIER_OF(double)

}  // namespace megadict
