#include "lab/layers.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/clones.h"
#include "base/philox.h"

namespace megadict {

template <class T>
Learnt<T>::Learnt(std::string of, int64_t r, int64_t c)
    : name(std::move(of)),
      rows(r),
      cols(c),
      value(static_cast<size_t>(r * c)),
      gradient(static_cast<size_t>(r * c)) {}

template <class T>
void Linear<T>::forward(const Tiles<T>& x, Tiles<T>& y) const {
  multiply(weight.view(), bias.present() ? bias.value.data() : nullptr, x, y);
}

template <class T>
void Linear<T>::backward(const Tiles<T>& x, const Tiles<T>& dy, Tiles<T>* dx) {
  add_outer(dy, x, weight.gradient_view());
  if (bias.present()) add_sums(dy, bias.gradient.data());
  if (dx != nullptr) multiply_transposed(weight.view(), dy, *dx);
}

template <class T>
void draw_uniform(Learnt<T>& parameter, int64_t ins, uint64_t seed, uint64_t stream) {
  const Rng rng{seed, Purpose::lab_init, stream};
  const double bound = 1 / std::sqrt(static_cast<double>(ins));
  for (size_t i = 0; i < parameter.value.size(); ++i)
    parameter.value[i] = static_cast<T>((2 * rng.uniform(i) - 1) * bound);
}

template <class T>
void draw_normal(Learnt<T>& parameter, uint64_t seed, uint64_t stream) {
  const Rng rng{seed, Purpose::lab_init, stream};
  for (size_t i = 0; i < parameter.value.size(); ++i)
    parameter.value[i] = static_cast<T>(rng.normals(i)[0]);
}

template <class T>
std::vector<T> make_columns_unit(Learnt<T>& d) {
  std::vector<T> norms(static_cast<size_t>(d.cols));
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t c = 0; c < d.cols; ++c)
      norms[c] += d.value[r * d.cols + c] * d.value[r * d.cols + c];
  for (T& norm : norms) norm = std::sqrt(norm);
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t c = 0; c < d.cols; ++c) d.value[r * d.cols + c] /= norms[c];
  return norms;
}

template <class T>
void project_gradient(Learnt<T>& d) {
  std::vector<T> along(static_cast<size_t>(d.cols));
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t c = 0; c < d.cols; ++c)
      along[c] += d.value[r * d.cols + c] * d.gradient[r * d.cols + c];
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t c = 0; c < d.cols; ++c)
      d.gradient[r * d.cols + c] -= along[c] * d.value[r * d.cols + c];
}

namespace {

template <class T>
struct AdamFactors {
  T beta1, beta2, rate, root, eps;  // rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

template <class T>
__attribute__((always_inline)) inline void adam_loop(T* __restrict w, const T* __restrict g,
                                                     T* __restrict m, T* __restrict v, size_t count,
                                                     const AdamFactors<T>& f) {
  for (size_t i = 0; i < count; ++i) {
    m[i] = f.beta1 * m[i] + (1 - f.beta1) * g[i];
    v[i] = f.beta2 * v[i] + (1 - f.beta2) * g[i] * g[i];
    w[i] -= f.rate * m[i] / (std::sqrt(v[i]) * f.root + f.eps);
  }
}

MEGADICT_CLONES void adam_all(float* w, const float* g, float* m, float* v, size_t count,
                              const AdamFactors<float>& f) {
  adam_loop(w, g, m, v, count, f);
}
MEGADICT_CLONES void adam_all(double* w, const double* g, double* m, double* v, size_t count,
                              const AdamFactors<double>& f) {
  adam_loop(w, g, m, v, count, f);
}

}  // namespace

template <class T>
void Adam<T>::step(Learnt<T>& parameter, const Settings& s) {
  const size_t count = parameter.value.size();
  first_.resize(count);
  second_.resize(count);
  const auto t = static_cast<double>(++steps_);
  const AdamFactors<T> factors{static_cast<T>(s.beta1), static_cast<T>(s.beta2),
                               static_cast<T>(s.rate / (1 - std::pow(s.beta1, t))),
                               static_cast<T>(1 / std::sqrt(1 - std::pow(s.beta2, t))),
                               static_cast<T>(s.eps)};
  adam_all(parameter.value.data(), parameter.gradient.data(), first_.data(), second_.data(), count,
           factors);
}

template <class T>
void Adam<T>::forget(int64_t first, int64_t count, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(first + i * stride);
    if (at < first_.size()) first_[at] = second_[at] = 0;
  }
}

#define MEGADICT_LAYERS_OF(T)                                          \
  template struct Learnt<T>;                                           \
  template struct Linear<T>;                                           \
  template void draw_uniform(Learnt<T>&, int64_t, uint64_t, uint64_t); \
  template void draw_normal(Learnt<T>&, uint64_t, uint64_t);           \
  template std::vector<T> make_columns_unit(Learnt<T>&);               \
  template void project_gradient(Learnt<T>&);                          \
  template class Adam<T>;

MEGADICT_LAYERS_OF(float)
MEGADICT_LAYERS_OF(double)

}  // namespace megadict
