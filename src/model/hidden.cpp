#include "model/hidden.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/philox.h"
#include "data/rows.h"

namespace megadict {

namespace {

constexpr double kNormEps = 1e-5;

[[noreturn]] void refuse_widths(const ModelConfig& config, const std::string& allowed) {
  fail_agreed(ExitCode::usage,
              fmt::format("model.hidden = '{}' with model.encoder = {}; allowed: {}", config.hidden,
                          config.encoder, allowed));
}

// Parameters in front of the sparse layer.
size_t front_count(const ModelConfig& config, int64_t d) {
  if (!has_front(config)) return 0;
  return hidden_widths(config, d).size() * (config.encoder == "deep" ? 4 : 2);
}

at::Tensor layer(const at::Tensor& x_bi, const at::Tensor& weight_oi, const at::Tensor& bias_o) {
  return at::addmm(bias_o, x_bi, weight_oi.t());
}

at::Tensor normed(const at::Tensor& x_bh, const at::Tensor& gain_h, const at::Tensor& shift_h) {
  return at::layer_norm(x_bh, {x_bh.size(1)}, gain_h, shift_h, kNormEps);
}

void add_norm(std::vector<HiddenParameter>& all, const std::string& name, int64_t width) {
  all.push_back({name + ".gain", {width}, HiddenStart::one, width, false, false, true});
  all.push_back({name + ".shift", {width}, HiddenStart::zero, width, false, false, true});
}

// The gradients of `inputs` where the function's result has the gradient `above`.
std::vector<at::Tensor> pull_back(const at::Tensor& result, const std::vector<at::Tensor>& inputs,
                                  const at::Tensor& above) {
  return torch::autograd::grad({result}, inputs, {above});
}

std::vector<at::Tensor> leaves_of(std::span<const at::Tensor> tensors) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& tensor : tensors) leaves.push_back(tensor.detach().requires_grad_(true));
  return leaves;
}

}  // namespace

bool has_front(const ModelConfig& config) {
  return config.encoder != "linear";
}

bool has_back(const ModelConfig& config) {
  return config.decoder == "deep";
}

std::vector<int64_t> hidden_widths(const ModelConfig& config, int64_t d) {
  const bool deep = config.encoder == "deep";
  if (config.hidden.empty()) {
    if (!deep) refuse_widths(config, "one width a hidden layer, as 1024 or 256,256");
    return {d};
  }
  std::vector<int64_t> widths;
  const char* at = config.hidden.data();
  const char* end = at + config.hidden.size();
  while (at < end) {
    int64_t width = 0;
    const auto read = std::from_chars(at, end, width);
    const bool ends = read.ptr == end || (*read.ptr == ',' && read.ptr + 1 < end);
    if (read.ec != std::errc() || !ends || width < 1 || width > kMostWidth)
      refuse_widths(config, fmt::format("widths from 1 to {}, as 1024 or 256,256", kMostWidth));
    if (deep && d > 0 && width != d)
      refuse_widths(config, fmt::format("{0} for each layer, the rows' width, since x is added: "
                                        "'{0}' or '{0},{0}'",
                                        d));
    widths.push_back(width);
    at = read.ptr == end ? end : read.ptr + 1;
  }
  return widths;
}

int64_t encoder_width(const ModelConfig& config, int64_t d) {
  return has_front(config) ? hidden_widths(config, d).back() : d;
}

std::vector<HiddenParameter> hidden_parameters(const ModelConfig& config, int64_t d) {
  std::vector<HiddenParameter> all;
  const bool deep = config.encoder == "deep";
  if (has_front(config)) {
    int64_t ins = d, number = 0;
    for (const int64_t outs : hidden_widths(config, d)) {
      const std::string name = fmt::format("front.{}", number++);
      const HiddenStart start = deep ? HiddenStart::kaiming : HiddenStart::uniform;
      all.push_back({name + ".weight", {outs, ins}, start, ins, true});
      all.push_back({name + ".bias", {outs}, deep ? HiddenStart::zero : start, ins});
      if (deep) add_norm(all, name + ".norm", outs);
      ins = outs;
    }
  }
  if (has_back(config)) {
    all.push_back({"back.bias", {d}, HiddenStart::zero, d});
    if (config.decoder_norm) add_norm(all, "back.norm", d);
    all.push_back({"back.weight", {d, d}, HiddenStart::normal_rows, d, false, true});
  }
  return all;
}

std::vector<at::Tensor> empty_hidden(const ModelConfig& config, int64_t d, at::Device device) {
  std::vector<at::Tensor> hidden;
  for (const HiddenParameter& parameter : hidden_parameters(config, d))
    hidden.push_back(at::zeros(parameter.shape, at::TensorOptions(at::kFloat).device(device)));
  return hidden;
}

void draw_hidden(const ModelConfig& config, uint64_t seed, std::vector<at::Tensor>& hidden) {
  if (hidden.empty()) return;
  const int64_t d = has_back(config) ? hidden.back().size(1) : hidden.front().size(1);
  const std::vector<HiddenParameter> all = hidden_parameters(config, d);
  for (size_t i = 0; i < all.size(); ++i) {
    const HiddenParameter& parameter = all[i];
    if (parameter.start == HiddenStart::zero || parameter.start == HiddenStart::one) {
      hidden[i].fill_(parameter.start == HiddenStart::one ? 1 : 0);
      continue;
    }
    const Rng rng{seed, Purpose::init_hidden, i};
    const auto ins = static_cast<double>(parameter.ins);
    at::Tensor drawn = at::empty(parameter.shape, at::kFloat);
    float* value = drawn.mutable_data_ptr<float>();
    for (int64_t at = 0; at < drawn.numel(); ++at) {
      const auto id = static_cast<uint64_t>(at);
      value[at] = static_cast<float>(parameter.start == HiddenStart::uniform
                                         ? (2 * rng.uniform(id) - 1) / std::sqrt(ins)
                                         : rng.normals(id)[0] * std::sqrt(2 / ins));
    }
    if (parameter.unit_rows) drawn.div_(drawn.norm(2, {1}, true));
    hidden[i].copy_(drawn);
  }
}

at::Tensor in_front(const ModelConfig& config, std::span<const at::Tensor> hidden,
                    const at::Tensor& x_bd) {
  const bool deep = config.encoder == "deep";
  const size_t count = front_count(config, x_bd.size(1));
  at::Tensor r = x_bd;
  for (size_t i = 0; i < count; i += deep ? 4 : 2) {
    const at::Tensor v = layer(r, hidden[i], hidden[i + 1]);
    r = deep ? normed(v.tanh(), hidden[i + 2], hidden[i + 3]) : v.relu();
  }
  return deep ? r + x_bd : r;
}

at::Tensor behind(const ModelConfig& config, std::span<const at::Tensor> hidden,
                  const at::Tensor& h_bd) {
  const auto own = hidden.subspan(front_count(config, h_bd.size(1)));
  at::Tensor open = (h_bd + own[0]).relu();
  if (config.decoder_norm) open = normed(open, own[1], own[2]);
  return open.mm(own.back());
}

void in_front_backward(const ModelConfig& config, std::span<const at::Tensor> hidden,
                       const at::Tensor& x_bd, const at::Tensor& d_r_be,
                       std::span<at::Tensor> gradients) {
  const at::AutoGradMode grad_on(true);
  const size_t count = front_count(config, x_bd.size(1));
  const std::vector<at::Tensor> leaves = leaves_of(hidden.first(count));
  const auto found = pull_back(in_front(config, leaves, x_bd.detach()), leaves, d_r_be);
  for (size_t i = 0; i < count; ++i) gradients[i].add_(found[i]);
}

at::Tensor behind_backward(const ModelConfig& config, std::span<const at::Tensor> hidden,
                           const at::Tensor& h_bd, const at::Tensor& d_x_hat_bd,
                           std::span<at::Tensor> gradients) {
  const at::AutoGradMode grad_on(true);
  const size_t first = front_count(config, h_bd.size(1));
  std::vector<at::Tensor> leaves = leaves_of(hidden);
  const at::Tensor h = h_bd.detach().requires_grad_(true);
  std::vector<at::Tensor> inputs(leaves.begin() + static_cast<int64_t>(first), leaves.end());
  inputs.push_back(h);
  const auto found = pull_back(behind(config, leaves, h), inputs, d_x_hat_bd);
  for (size_t i = first; i < leaves.size(); ++i) gradients[i].add_(found[i - first]);
  return found.back();
}

}  // namespace megadict
