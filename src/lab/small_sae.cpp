#include "lab/small_sae.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "lab/code_rules.h"

namespace megadict {

namespace {

// Streams of the initial weights: of layer i, and of its bias.
constexpr uint64_t kDecoderStream = 1000, kBiasStream = 2000;

template <class T>
void clear(Tiles<T>& tiles) {
  std::fill(tiles.values().begin(), tiles.values().end(), T{0});
}

template <class T>
Learnt<T> transposed(const Learnt<T>& of, const char* name) {
  Learnt<T> out(name, of.cols, of.rows);
  for (int64_t r = 0; r < of.rows; ++r)
    for (int64_t c = 0; c < of.cols; ++c)
      out.value[static_cast<size_t>(c * of.rows + r)] =
          of.value[static_cast<size_t>(r * of.cols + c)];
  return out;
}

// log of B8's first threshold; every other number of a rule starts at 0.
template <class T>
Learnt<T> learnt_parameter(std::string_view name, int64_t latents) {
  constexpr double kFirstThreshold = 0.001;
  Learnt<T> parameter(std::string(name), latents, 1);
  if (name == "t")
    std::fill(parameter.value.begin(), parameter.value.end(),
              static_cast<T>(std::log(kFirstThreshold)));
  return parameter;
}

// The sum of squares, and the gradient of sum / count.
template <class T>
double squared_error(const Tiles<T>& x, const Tiles<T>& x_hat, double count, Tiles<T>& d_x_hat) {
  const T slope = static_cast<T>(2 / count);
  const T* want = x.values().data();
  const T* got = x_hat.values().data();
  T* gradient = d_x_hat.values().data();
  double sum = 0;
  for (size_t begin = 0; begin < x.values().size(); begin += kLane) {
    T squares = 0;
    for (size_t i = begin; i < begin + kLane; ++i) {
      const T error = got[i] - want[i];
      gradient[i] = slope * error;
      squares += error * error;
    }
    sum += static_cast<double>(squares);
  }
  return sum;
}

}  // namespace

std::string problem_with(const SaeSettings& s) {
  const CodeRule<float>& rule = code_rule<float>(s.activation);
  if (s.width < 1 || s.latents < 1) return "width and latents are at least 1";
  if (s.tied && rule.name != "relu")
    return fmt::format("a tied decoder has no b_dec, which {} needs", rule.name);
  if (s.tied && !s.hidden.empty()) return "a tied decoder is the transpose of one linear layer";
  if (s.activation == "topk" && (s.k < 1 || s.k > s.latents))
    return fmt::format("k = {} of {} latents", s.k, s.latents);
  return "";
}

template <class T>
SaeLoss synthetic_loss(const Tiles<T>& x, const Tiles<T>& x_hat, const Tiles<T>& codes,
                       double lambda, Tiles<T>& d_x_hat) {
  const auto entries = static_cast<double>(x.values().size());
  const double mse = squared_error(x, x_hat, entries, d_x_hat) / entries;
  double sum = 0;
  for (const T z : codes.values()) sum += static_cast<double>(z);
  const double penalty = lambda * sum / static_cast<double>(codes.values().size());
  return {mse + penalty, mse, penalty};
}

template <class T>
SmallSae<T>::SmallSae(const SaeSettings& settings)
    : settings_(settings), rule_(code_rule<T>(settings.activation)) {
  const std::string problem = problem_with(settings);
  if (!problem.empty()) fail(ExitCode::usage, problem);
  const SaeSettings& s = settings_;
  if (!s.tied) {
    decoder_ = Learnt<T>("W_dec", s.width, s.latents);
    draw_normal(decoder_, s.seed, kDecoderStream);
    if (s.unit_columns) make_columns_unit(decoder_);
    if (s.bias || rule_.output_bias) b_dec_ = Learnt<T>("b_dec", s.width, 1);
    if (s.bias && !rule_.output_bias) draw_uniform(b_dec_, s.latents, s.seed, kBiasStream - 1);
  }
  std::vector<int64_t> sizes = {s.width};
  sizes.insert(sizes.end(), s.hidden.begin(), s.hidden.end());
  sizes.push_back(s.latents);
  for (size_t i = 0; i + 1 < sizes.size(); ++i) {
    const bool last = i + 2 == sizes.size();
    Linear<T> layer{{fmt::format("W_enc.{}", i), sizes[i + 1], sizes[i]}, {}};
    draw_uniform(layer.weight, sizes[i], s.seed, i);
    if (s.bias || (last && (s.encoder_bias || rule_.encoder_bias))) {
      layer.bias = Learnt<T>(fmt::format("b_enc.{}", i), sizes[i + 1], 1);
      if (s.bias && !rule_.encoder_bias)
        draw_uniform(layer.bias, sizes[i], s.seed, kBiasStream + i);
    }
    layers_.push_back(std::move(layer));
  }
  if (rule_.from_decoder && s.hidden.empty())
    layers_.back().weight.value = transposed(decoder_, "").value;
  for (const std::string_view name : rule_.learnt)
    learnt_.push_back(learnt_parameter<T>(name, s.latents));
}

template <class T>
void SmallSae<T>::fix_decoder(std::span<const T> columns) {
  decoder_.value.assign(columns.begin(), columns.end());
  fixed_ = true;
}

template <class T>
void SmallSae<T>::normalise() {
  if (settings_.unit_columns && decoder_.present() && !fixed_) make_columns_unit(decoder_);
}

template <class T>
const Tiles<T>& SmallSae<T>::seen_by_encoder(const Tiles<T>& x, SaePass<T>& pass) const {
  if (!rule_.centred) return x;
  fit(pass.centred, x.samples(), x.features());
  size_t i = 0;
  for (int64_t t = 0; t < x.tiles(); ++t)
    for (int64_t f = 0; f < x.features(); ++f)
      for (int64_t lane = 0; lane < kLane; ++lane, ++i)
        pass.centred.values()[i] = x.values()[i] - b_dec_.value[static_cast<size_t>(f)];
  return pass.centred;
}

template <class T>
void SmallSae<T>::forward(const Tiles<T>& x, SaePass<T>& pass) const {
  const int64_t samples = x.samples();
  const Tiles<T>* from = &seen_by_encoder(x, pass);
  pass.hidden.resize(layers_.size() - 1);
  for (size_t i = 0; i + 1 < layers_.size(); ++i) {
    Tiles<T>& to = pass.hidden[i];
    fit(to, samples, layers_[i].weight.rows);
    layers_[i].forward(*from, to);
    for (T& value : to.values()) value = value > 0 ? value : T{0};
    from = &to;
  }
  fit(pass.pre, samples, settings_.latents);
  fit(pass.codes, samples, settings_.latents);
  fit(pass.x_hat, samples, settings_.width);
  layers_.back().forward(*from, pass.pre);
  // The rules change nothing of what they are given here but the codes.
  auto& learnt = const_cast<std::vector<Learnt<T>>&>(learnt_);
  rule_.encode({settings_, learnt, x, decoder_.view(), b_dec_, pass});
  if (settings_.tied)
    multiply_transposed(layers_.back().weight.view(), pass.codes, pass.x_hat);
  else
    multiply(decoder_.view(), b_dec_.present() ? b_dec_.value.data() : nullptr, pass.codes,
             pass.x_hat);
}

template <class T>
SaeLoss SmallSae<T>::reconstruction(const Tiles<T>& x, SaePass<T>& pass) const {
  fit(pass.d_x_hat, x.samples(), x.features());
  const auto entries = static_cast<double>(x.values().size());
  const double count = rule_.sample_sums ? static_cast<double>(x.samples()) : entries;
  const double squares = squared_error(x, pass.x_hat, count, pass.d_x_hat);
  return {squares / count, squares / entries, 0};
}

template <class T>
void SmallSae<T>::decoder_gradients(SaePass<T>& pass) {
  fit(pass.d_codes, pass.codes.samples(), settings_.latents);
  if (settings_.tied) {
    Learnt<T>& w = layers_.back().weight;
    multiply(w.view(), static_cast<const T*>(nullptr), pass.d_x_hat, pass.d_codes);
    add_outer(pass.codes, pass.d_x_hat, w.gradient_view());
    return;
  }
  multiply_transposed(decoder_.view(), pass.d_x_hat, pass.d_codes);
  if (!fixed_) add_outer(pass.d_x_hat, pass.codes, decoder_.gradient_view());
  if (b_dec_.present()) add_sums(pass.d_x_hat, b_dec_.gradient.data());
}

template <class T>
void SmallSae<T>::backward_layers(const Tiles<T>& x, SaePass<T>& pass) {
  const Tiles<T>& seen = rule_.centred ? pass.centred : x;
  pass.d_hidden.resize(pass.hidden.size());
  const Tiles<T>* dy = &pass.d_pre;
  for (size_t i = layers_.size(); i-- > 0;) {
    const Tiles<T>& input = i > 0 ? pass.hidden[i - 1] : seen;
    Tiles<T>* dx = nullptr;
    if (i > 0 || rule_.centred) {
      dx = i > 0 ? &pass.d_hidden[i - 1] : &pass.d_centred;
      fit(*dx, x.samples(), input.features());
    }
    layers_[i].backward(input, *dy, dx);
    if (i == 0) break;
    for (size_t v = 0; v < dx->values().size(); ++v)
      if (!(input.values()[v] > 0)) dx->values()[v] = 0;
    dy = dx;
  }
  if (!rule_.centred) return;
  std::vector<T> sums(static_cast<size_t>(settings_.width));
  add_sums(pass.d_centred, sums.data());
  for (size_t i = 0; i < sums.size(); ++i) b_dec_.gradient[i] -= sums[i];
}

template <class T>
SaeLoss SmallSae<T>::gradients(const Tiles<T>& x, SaePass<T>& pass) {
  forward(x, pass);
  for (Learnt<T>* p : parameters()) std::fill(p->gradient.begin(), p->gradient.end(), T{0});
  SaeLoss loss = reconstruction(x, pass);
  decoder_gradients(pass);
  fit(pass.d_pre, x.samples(), settings_.latents);
  clear(pass.d_pre);
  const CodeArgs<T> args{settings_, learnt_, x, decoder_.view(), b_dec_, pass};
  if (rule_.penalty != nullptr) loss.penalty = rule_.penalty(args);
  loss.total += loss.penalty;
  rule_.backward(args);
  backward_layers(x, pass);
  if (rule_.projects && settings_.unit_columns && !fixed_) project_gradient(decoder_);
  return loss;
}

template <class T>
void SmallSae<T>::encoder_gradients(const Tiles<T>& x, SaePass<T>& pass) {
  for (Learnt<T>* p : parameters()) std::fill(p->gradient.begin(), p->gradient.end(), T{0});
  fit(pass.d_pre, x.samples(), settings_.latents);
  clear(pass.d_pre);
  rule_.backward({settings_, learnt_, x, decoder_.view(), b_dec_, pass});
  backward_layers(x, pass);
}

template <class T>
std::vector<Learnt<T>*> SmallSae<T>::parameters() {
  std::vector<Learnt<T>*> all;
  for (Linear<T>& layer : layers_) {
    all.push_back(&layer.weight);
    if (layer.bias.present()) all.push_back(&layer.bias);
  }
  if (decoder_.present() && !fixed_) all.push_back(&decoder_);
  if (b_dec_.present()) all.push_back(&b_dec_);
  for (Learnt<T>& parameter : learnt_) all.push_back(&parameter);
  return all;
}

template SaeLoss synthetic_loss(const Tiles<float>&, const Tiles<float>&, const Tiles<float>&,
                                double, Tiles<float>&);
template SaeLoss synthetic_loss(const Tiles<double>&, const Tiles<double>&, const Tiles<double>&,
                                double, Tiles<double>&);
template class SmallSae<float>;
template class SmallSae<double>;

}  // namespace megadict
