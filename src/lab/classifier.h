// H1: the classifier whose hidden layers are taken apart, linear layers with ReLUs between and
// softmax cross-entropy; gradients by hand.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lab/layers.h"

namespace megadict {

template <class T>
struct ClassifierPass {
  std::vector<Tiles<T>> hidden;  // after their ReLU
  Tiles<T> logits, d_logits;
  std::vector<Tiles<T>> d_hidden;
};

template <class T>
class Classifier {
 public:
  // sizes: of the input, of every hidden layer, of the output. U-init.
  Classifier(const std::vector<int64_t>& sizes, uint64_t seed);

  // Layer 0 reads the input.
  const std::vector<Linear<T>>& layers() const { return layers_; }
  void forward(const Tiles<T>& x, ClassifierPass<T>& pass) const;
  // The mean cross-entropy over the batch; its gradients are overwritten. labels: one a sample.
  double gradients(const Tiles<T>& x, std::span<const uint8_t> labels, ClassifierPass<T>& pass);
  std::vector<Learnt<T>*> parameters();

 private:
  std::vector<Linear<T>> layers_;
};

// The mean over samples; its gradient goes to d_logits where that is given.
template <class T>
double cross_entropy(const Tiles<T>& logits, std::span<const uint8_t> labels, Tiles<T>* d_logits);
// Samples whose largest logit (the first of equal ones) is their label's.
int64_t count_correct(const Tiles<float>& logits, std::span<const uint8_t> labels);

}  // namespace megadict
