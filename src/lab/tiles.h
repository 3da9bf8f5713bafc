// Small dense products over many samples, for experiments whose steps are tiny (16 x 8) and whose
// time is all overhead elsewhere.
//
// Layout: samples in tiles of kLane; a tile holds its features one after the other, each with its
// kLane samples side by side. So a tile of every layer lies in one piece, and the lanes of a vector
// are samples. The number of samples is a multiple of kLane.
//
// Sums over samples run in a fixed order: the same numbers on every machine with fused
// multiply-add, on every thread and rank count.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace megadict {

constexpr int64_t kLane = 16;

// [samples, features] in tiles. T: float, or double for the tests' finite differences.
template <class T>
class Tiles {
 public:
  Tiles() = default;
  Tiles(int64_t samples, int64_t features)
      : samples_(samples), features_(features), values_(static_cast<size_t>(samples * features)) {}

  int64_t samples() const { return samples_; }
  int64_t features() const { return features_; }
  int64_t tiles() const { return samples_ / kLane; }

  T& at(int64_t sample, int64_t feature) { return values_[place(sample, feature)]; }
  T at(int64_t sample, int64_t feature) const { return values_[place(sample, feature)]; }
  T* tile(int64_t t) { return values_.data() + t * features_ * kLane; }
  const T* tile(int64_t t) const { return values_.data() + t * features_ * kLane; }
  std::span<T> values() { return values_; }
  std::span<const T> values() const { return values_; }

 private:
  size_t place(int64_t sample, int64_t feature) const {
    return static_cast<size_t>((sample / kLane * features_ + feature) * kLane + sample % kLane);
  }

  int64_t samples_ = 0, features_ = 0;
  std::vector<T> values_;
};

// Of another shape the tiles are made anew, else they stay.
template <class T>
void fit(Tiles<T>& tiles, int64_t samples, int64_t features) {
  if (tiles.samples() != samples || tiles.features() != features)
    tiles = Tiles<T>(samples, features);
}

// A weight matrix [outs, ins], row-major, of a layer from `ins` to `outs` features.
template <class T>
struct WeightView {
  T* values;
  int64_t outs, ins;
};

// y = W x (+ bias, [outs] or null)
void multiply(WeightView<const float> w, const float* bias, const Tiles<float>& x, Tiles<float>& y);
void multiply(WeightView<const double> w, const double* bias, const Tiles<double>& x,
              Tiles<double>& y);
// x = W^T y
void multiply_transposed(WeightView<const float> w, const Tiles<float>& y, Tiles<float>& x);
void multiply_transposed(WeightView<const double> w, const Tiles<double>& y, Tiles<double>& x);
// dW += sum over samples of dy x^T
void add_outer(const Tiles<float>& dy, const Tiles<float>& x, WeightView<float> dw);
void add_outer(const Tiles<double>& dy, const Tiles<double>& x, WeightView<double> dw);
// db += sum over samples of dy
void add_sums(const Tiles<float>& dy, float* db);
void add_sums(const Tiles<double>& dy, double* db);

}  // namespace megadict
