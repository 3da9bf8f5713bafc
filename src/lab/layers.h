// Linear layers over tiles with gradients written by hand, and Adam. The seeds' conventions:
// weights [outs, ins], a dictionary D [M, N] with latent j in column j (seed 003).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lab/tiles.h"

namespace megadict {

template <class T>
struct Learnt {
  std::string name;
  int64_t rows = 0, cols = 0;  // a vector has one column; 0 rows = absent
  std::vector<T> value, gradient;

  Learnt() = default;
  Learnt(std::string name, int64_t rows, int64_t cols);
  bool present() const { return rows > 0; }
  WeightView<const T> view() const { return {value.data(), rows, cols}; }
  WeightView<T> gradient_view() { return {gradient.data(), rows, cols}; }
};

// y = W x (+ b)
template <class T>
struct Linear {
  Learnt<T> weight, bias;

  void forward(const Tiles<T>& x, Tiles<T>& y) const;
  // Adds to the gradients; dx, where asked for, is overwritten.
  void backward(const Tiles<T>& x, const Tiles<T>& dy, Tiles<T>* dx);
};

// Where a layer's numbers come from: U(+-1/sqrt(ins)) (U-init) or N(0, 1). Entry i of a parameter
// is drawn by (seed, stream, i), so nothing depends on the order of drawing.
template <class T>
void draw_uniform(Learnt<T>& parameter, int64_t ins, uint64_t seed, uint64_t stream);
template <class T>
void draw_normal(Learnt<T>& parameter, uint64_t seed, uint64_t stream);

// Divides each column by its norm. Returns the norms.
template <class T>
std::vector<T> make_columns_unit(Learnt<T>& d);
// Removes from the gradient of each unit column the part along it.
template <class T>
void project_gradient(Learnt<T>& d);

// Kingma and Ba 2015, bias-corrected, without decay. One object a parameter.
template <class T>
class Adam {
 public:
  struct Settings {
    double rate = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  };
  void step(Learnt<T>& parameter, const Settings& settings);
  // Moments of `count` entries from `first` on, `stride` apart, become 0.
  void forget(int64_t first, int64_t count, int64_t stride);

 private:
  int64_t steps_ = 0;
  std::vector<T> first_, second_;
};

}  // namespace megadict
