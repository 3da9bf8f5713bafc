#include "model/folding.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "base/error.h"

namespace megadict {

namespace {

constexpr int64_t kBlockRows = 4096;  // of weights held in fp64 at a time

// Some latents in fp64. What the activation does not need is undefined.
struct Block {
  at::Tensor w_enc, w_dec;
  at::Tensor b_enc, threshold, r_mag, b_gate, b_mag;
};

struct BlockTensor {
  std::string_view name;
  at::Tensor PlainDictionary::*whole;
  at::Tensor Block::*part;
  bool like_h;
};
constexpr BlockTensor kLatentTensors[] = {
    {"b_enc", &PlainDictionary::b_enc_n, &Block::b_enc, true},
    {"threshold", &PlainDictionary::threshold_n, &Block::threshold, true},
    {"r_mag", &PlainDictionary::r_mag_n, &Block::r_mag, false},
    {"b_gate", &PlainDictionary::b_gate_n, &Block::b_gate, true},
    {"b_mag", &PlainDictionary::b_mag_n, &Block::b_mag, true}};

// F1: how an activation says what jumprelu says.
void relu_as_jumprelu(Block& block) {
  block.threshold = at::zeros_like(block.b_enc);
}
void threshold_stays(Block&) {}
void prolu_as_jumprelu(Block& block) {
  block.threshold = (-block.b_enc).clamp_min(0);
  block.b_enc = at::zeros_like(block.b_enc);
}
// g > -b_gate is g e^r + b_mag > b_mag - e^r b_gate, which may be negative: the ReLU stays.
void gated_as_jumprelu(Block& block) {
  const at::Tensor factor = block.r_mag.exp();
  block.w_enc = block.w_enc * factor.unsqueeze(1);
  block.threshold = block.b_mag - factor * block.b_gate;
  block.b_enc = block.b_mag;
  block.r_mag = block.b_gate = block.b_mag = at::Tensor();
}

struct Activation {
  std::string_view name;
  std::vector<std::string_view> tensors;
  void (*as_jumprelu)(Block&);  // nullptr: no threshold says it
};

const std::vector<Activation>& activations() {
  static const std::vector<Activation> all = {
      {"relu", {"b_enc"}, relu_as_jumprelu},
      {"topk", {"b_enc"}, nullptr},
      {"batchtopk", {"b_enc", "threshold"}, threshold_stays},
      {"jumprelu", {"b_enc", "threshold"}, threshold_stays},
      {"prolu", {"b_enc"}, prolu_as_jumprelu},
      {"gated", {"r_mag", "b_gate", "b_mag"}, gated_as_jumprelu},
  };
  return all;
}

const Activation& activation_of(const std::string& name) {
  for (const Activation& activation : activations())
    if (activation.name == name) return activation;
  fail(ExitCode::error, fmt::format("no dictionary in a file has the activation '{}'", name));
}

bool needs(const Activation& activation, std::string_view tensor) {
  const auto& all = activation.tensors;
  return std::find(all.begin(), all.end(), tensor) != all.end();
}

template <class Change>
void for_latent_tensors(Block& block, Change&& change) {
  for (const BlockTensor& tensor : kLatentTensors)
    if ((block.*tensor.part).defined()) change(tensor, block.*tensor.part);
}

// F2.
void apply_scale(Block& block, double s, ExportScale scale) {
  if (s == 1.0) return;
  if (scale == ExportScale::trained) {
    block.w_enc = block.w_enc * s;
    block.w_dec = block.w_dec / s;
    return;
  }
  for_latent_tensors(block, [&](const BlockTensor& tensor, at::Tensor& values) {
    if (tensor.like_h) values = values / s;
  });
}

// F3. A zero row has no direction: it stays zero, and so do its codes.
void apply_unit_rows(Block& block, bool selects_by_norm) {
  const at::Tensor norm = block.w_dec.norm(2, {1});
  block.w_dec = block.w_dec / norm.clamp_min(1e-30).unsqueeze(1);
  block.w_enc = block.w_enc * norm.unsqueeze(1);
  for_latent_tensors(block, [&](const BlockTensor& tensor, at::Tensor& values) {
    const bool compared_with_norm = selects_by_norm && tensor.name == "threshold";
    if (tensor.like_h && !compared_with_norm) values = values * norm;
  });
}

// F4 and its inverse: what b_dec adds to h goes into the biases that are added to it. (A prolu has
// none; no format holds one.)
void apply_input_shift(Block& block, const at::Tensor& b_dec, double sign) {
  const at::Tensor shift = sign * at::mv(block.w_enc, b_dec);
  if (block.b_enc.defined()) block.b_enc = block.b_enc + shift;
  if (block.b_gate.defined()) block.b_gate = block.b_gate + shift;
  if (block.b_mag.defined()) block.b_mag = block.b_mag + block.r_mag.exp() * shift;
}

at::Tensor cpu_copy(const at::Tensor& tensor) {
  return tensor.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
}

// Every block of `plain` through `change`, then to where it came from. Tensors that the result's
// activation needs and this one has not are made.
template <class Change>
void for_each_block(PlainDictionary& plain, const std::string& activation, Change&& change) {
  const Activation &before = activation_of(plain.activation), &after = activation_of(activation);
  std::vector<at::Tensor> made(std::size(kLatentTensors));
  for (size_t i = 0; i < std::size(kLatentTensors); ++i)
    if (needs(after, kLatentTensors[i].name)) made[i] = at::empty({plain.n}, at::kFloat);
  for (int64_t from = 0; from < plain.n; from += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, plain.n - from);
    at::Tensor w_enc = plain.w_enc_nd.narrow(0, from, rows);
    at::Tensor w_dec = plain.w_dec_nd.narrow(0, from, rows);
    Block block;
    block.w_enc = w_enc.to(at::kDouble);
    block.w_dec = w_dec.to(at::kDouble);
    for (const BlockTensor& tensor : kLatentTensors)
      if (needs(before, tensor.name))
        block.*tensor.part = (plain.*tensor.whole).narrow(0, from, rows).to(at::kDouble);
    change(block);
    w_enc.copy_(block.w_enc);
    w_dec.copy_(block.w_dec);
    for (size_t i = 0; i < std::size(kLatentTensors); ++i)
      if (made[i].defined()) made[i].narrow(0, from, rows).copy_(block.*kLatentTensors[i].part);
  }
  for (size_t i = 0; i < std::size(kLatentTensors); ++i) plain.*kLatentTensors[i].whole = made[i];
  plain.activation = activation;
}

}  // namespace

ExportScale export_scale_named(const std::string& name) {
  if (name == "unit") return ExportScale::unit;
  if (name == "trained") return ExportScale::trained;
  fail_agreed(ExitCode::usage, fmt::format("there is no export scale '{}'", name),
              "'unit' or 'trained'");
}

std::string_view name_of(ExportScale scale) {
  return scale == ExportScale::unit ? "unit" : "trained";
}

std::vector<LatentTensor> latent_tensors(const std::string& activation) {
  const Activation& facts = activation_of(activation);
  std::vector<LatentTensor> out;
  for (const BlockTensor& tensor : kLatentTensors)
    if (needs(facts, tensor.name)) out.push_back({tensor.name, tensor.whole, tensor.like_h});
  return out;
}

std::vector<PlainTensor> tensors_of(const std::string& activation) {
  std::vector<PlainTensor> out = {{"W_enc", &PlainDictionary::w_enc_nd},
                                  {"W_dec", &PlainDictionary::w_dec_nd}};
  for (const LatentTensor& tensor : latent_tensors(activation))
    out.push_back({tensor.name, tensor.member});
  out.push_back({"b_dec", &PlainDictionary::b_dec_d});
  return out;
}

PlainDictionary folded(PlainDictionary plain, const FoldTo& to) {
  const Activation& own = activation_of(plain.activation);
  const bool rewrite = to.activation != plain.activation;
  if (rewrite && (to.activation != "jumprelu" || own.as_jumprelu == nullptr))
    fail(ExitCode::error,
         fmt::format("'{}' cannot be written as '{}'", plain.activation, to.activation));
  for (const auto& [name, member] : tensors_of(plain.activation))
    plain.*member = cpu_copy(plain.*member);
  plain = absorbed(std::move(plain));
  const double s = plain.normalization.scale;
  at::Tensor b_dec = plain.b_dec_d.to(at::kDouble) / s;
  if (!plain.normalization.mean.empty())
    b_dec += at::tensor(plain.normalization.mean, at::kFloat).to(at::kDouble);
  for_each_block(plain, to.activation, [&](Block& block) {
    if (rewrite) own.as_jumprelu(block);
    apply_scale(block, s, to.scale);
    if (to.unit_rows) apply_unit_rows(block, false);
    if (!to.subtracts_b_dec) apply_input_shift(block, b_dec, -1);
    if (block.threshold.defined()) block.threshold = block.threshold.clamp_min(to.least_threshold);
  });
  plain.b_dec_d = b_dec.to(at::kFloat);
  plain.decoder = "linear";
  plain.normalization = {};
  plain.subtracts_b_dec = to.subtracts_b_dec;
  return plain;
}

PlainDictionary absorbed(PlainDictionary plain) {
  if (plain.subtracts_b_dec && !plain.selects_by_norm) return plain;
  const at::Tensor b_dec = plain.b_dec_d.to(at::kDouble);
  for_each_block(plain, plain.activation, [&](Block& block) {
    if (!plain.subtracts_b_dec) apply_input_shift(block, b_dec, 1);
    if (plain.selects_by_norm) apply_unit_rows(block, true);
  });
  plain.subtracts_b_dec = true;
  plain.selects_by_norm = false;
  return plain;
}

double off_unit(const PlainDictionary& plain) {
  double off = 0;
  for (int64_t from = 0; from < plain.n; from += kBlockRows) {
    const at::Tensor rows = plain.w_dec_nd.narrow(0, from, std::min(kBlockRows, plain.n - from));
    off = std::max(off, (rows.to(at::kDouble).norm(2, {1}) - 1).abs().max().item<double>());
  }
  return off;
}

}  // namespace megadict
