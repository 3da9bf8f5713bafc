#include "lab/connector.h"

#include <algorithm>
#include <cmath>

namespace megadict {

namespace {

template <class T>
T sign_of(T value) {
  return value > 0 ? T{1} : value < 0 ? T{-1} : T{0};
}

// a b; a [rows, inner], b [inner, cols]
template <class T>
Learnt<T> product(const Learnt<T>& a, const Learnt<T>& b) {
  Learnt<T> out("", a.rows, b.cols);
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.cols; ++i) {
      const T factor = a.value[static_cast<size_t>(r * a.cols + i)];
      for (int64_t c = 0; c < b.cols; ++c)
        out.value[static_cast<size_t>(r * b.cols + c)] +=
            factor * b.value[static_cast<size_t>(i * b.cols + c)];
    }
  return out;
}

// [width, latents]
template <class T>
Learnt<T> decoder_of(const SmallSae<T>& sae) {
  if (!sae.settings().tied) return sae.decoder();
  const Learnt<T>& encoder = sae.encoder().weight;
  Learnt<T> out("", encoder.cols, encoder.rows);
  for (int64_t j = 0; j < encoder.rows; ++j)
    for (int64_t f = 0; f < encoder.cols; ++f)
      out.value[static_cast<size_t>(f * encoder.rows + j)] =
          encoder.value[static_cast<size_t>(j * encoder.cols + f)];
  return out;
}

}  // namespace

template <class T>
void Connector<T>::forward(const Tiles<T>& from, Tiles<T>& to) const {
  map.forward(from, to);
  for (T& value : to.values()) value = std::max(value, T{0});
}

template <class T>
ConnectorLoss Connector<T>::gradients(const Tiles<T>& from, const Tiles<T>& to, double lambda,
                                      ConnectorPass<T>& pass) {
  fit(pass.codes, to.samples(), to.features());
  fit(pass.d_codes, to.samples(), to.features());
  forward(from, pass.codes);
  ConnectorLoss loss;
  loss.mse = synthetic_loss(to, pass.codes, pass.codes, 0, pass.d_codes).mse;
  for (size_t i = 0; i < pass.codes.values().size(); ++i)
    pass.d_codes.values()[i] = pass.codes.values()[i] > 0 ? pass.d_codes.values()[i] : T{0};
  Learnt<T>& w = map.weight;
  const auto entries = static_cast<double>(w.value.size());
  const T slope = static_cast<T>(lambda / entries);
  double sum = 0;
  for (size_t i = 0; i < w.value.size(); ++i) {
    sum += std::abs(static_cast<double>(w.value[i]));
    w.gradient[i] = slope * sign_of(w.value[i]);
  }
  std::fill(map.bias.gradient.begin(), map.bias.gradient.end(), T{0});
  map.backward(from, pass.d_codes, nullptr);
  loss.weight = sum / entries;
  loss.total = loss.mse + lambda * loss.weight;
  return loss;
}

template <class T>
Connector<T> random_connector(int64_t latents, uint64_t seed) {
  Connector<T> connector{{{"W", latents, latents}, {"b", latents, 1}}};
  draw_uniform(connector.map.weight, latents, seed, 0);
  draw_uniform(connector.map.bias, latents, seed, 1);
  return connector;
}

template <class T>
Connector<T> closed_connector(const SmallSae<T>& before, const Linear<T>& layer,
                              const SmallSae<T>& after) {
  const Linear<T>& encoder = after.encoder();
  Connector<T> connector{{product(product(encoder.weight, layer.weight), decoder_of(before)),
                          product(encoder.weight, layer.bias)}};
  if (encoder.bias.present())
    for (size_t j = 0; j < encoder.bias.value.size(); ++j)
      connector.map.bias.value[j] += encoder.bias.value[j];
  return connector;
}

template <class T>
void decode(const SmallSae<T>& sae, const Tiles<T>& codes, Tiles<T>& x_hat) {
  if (sae.settings().tied)
    multiply_transposed(sae.encoder().weight.view(), codes, x_hat);
  else
    multiply(sae.decoder().view(),
             sae.output_bias().present() ? sae.output_bias().value.data() : nullptr, codes, x_hat);
}

int64_t count_above(const Learnt<float>& weight, double threshold) {
  return std::count_if(weight.value.begin(), weight.value.end(),
                       [&](float w) { return std::abs(w) > static_cast<float>(threshold); });
}

#define MEGADICT_CONNECTOR_OF(T)                                               \
  template struct Connector<T>;                                                \
  template Connector<T> random_connector(int64_t, uint64_t);                   \
  template Connector<T> closed_connector(const SmallSae<T>&, const Linear<T>&, \
                                         const SmallSae<T>&);                  \
  template void decode(const SmallSae<T>&, const Tiles<T>&, Tiles<T>&);

MEGADICT_CONNECTOR_OF(float)
MEGADICT_CONNECTOR_OF(double)

}  // namespace megadict
