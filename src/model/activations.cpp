#include "model/activations.h"

#include <ATen/ATen.h>

#include <array>

#include "base/error.h"
#include "kernels/kernel_set.h"
#include "model/batch_topk.h"
#include "model/code_entries.h"
#include "model/gated.h"
#include "model/topk.h"

namespace megadict {

namespace {

Candidates best_of_rows(const EncodeArgs& input, int64_t k, const EncodeWith& with) {
  return with.screen != nullptr ? with.screen->topk(input, k, with.check)
                                : kernels_for(input.x_bd).topk(input, k);
}

Encoded encode_topk(const Mesh& mesh, const Dictionary& dictionary, const at::Tensor& xc_bd,
                    const SelectRows& rows, const EncodeWith& with) {
  const int64_t k = dictionary.config.k;
  const Candidates candidates =
      best_of_rows({xc_bd, dictionary.w_enc_ld, dictionary.b_enc_l}, k, with);
  SelectArgs args{k, rows.slot, rows.real_rows, 0, {}};
  for (int f = 0; f < mesh.feature_size(); ++f)
    args.shard_latents.push_back(shard_of(dictionary.n, mesh.feature_size(), f).size());
  return {select_topk(*mesh.feature, candidates, args)};
}

// Padding rows are cut off before encoding and come back empty.
Codes with_padding_rows(Codes codes, int64_t padded) {
  const int64_t padding = padded - codes.rows;
  if (padding > 0) {
    const at::Tensor end = codes.row_start.narrow(0, codes.rows, 1).expand({padding});
    codes.row_start = at::cat({codes.row_start, end});
    codes.rows = padded;
  }
  return codes;
}

Encoded encode_above(const Dictionary& dictionary, const at::Tensor& xc_bd, const SelectRows& rows,
                     float threshold) {
  const at::Tensor real = xc_bd.narrow(0, 0, rows.real_rows);
  const EncodeArgs input{real, dictionary.w_enc_ld, dictionary.b_enc_l};
  return {with_padding_rows(kernels_for(xc_bd).above(input, threshold), xc_bd.size(0))};
}

Encoded encode_relu(const Mesh&, const Dictionary& dictionary, const at::Tensor& xc_bd,
                    const SelectRows& rows, const EncodeWith&) {
  return encode_above(dictionary, xc_bd, rows, 0);
}

Encoded encode_batch_topk(const Mesh& mesh, const Dictionary& dictionary, const at::Tensor& xc_bd,
                          const SelectRows& rows, const EncodeWith& with) {
  if (with.purpose == EncodeFor::inference)
    return encode_above(dictionary, xc_bd, rows, static_cast<float>(dictionary.threshold));
  const at::Tensor real = xc_bd.narrow(0, 0, rows.real_rows);
  const EncodeArgs input{real, dictionary.w_enc_ld, dictionary.b_enc_l};
  const int64_t k = dictionary.config.k;
  BatchSelection selected = select_batch_topk(
      *mesh.world, input, best_of_rows(input, list_width(k), with),
      {k, rows.batch_rows, rows.first_row, dictionary.n, dictionary.latents.begin, with.screen});
  return {with_padding_rows(std::move(selected.codes), xc_bd.size(0)), selected.least};
}

constexpr LatentParameter kThresholds[] = {
    {.name = "threshold",
     .start = [](const ModelConfig& config) { return config.jumprelu_threshold; },
     .positive = true,
     .pre_activation = true}};

// Bounds that differ between latents are moved into the biases, so that one bound, 0, serves all: a
// training step lists from half a bandwidth below the thresholds on.
Encoded encode_jumprelu(const Mesh&, const Dictionary& dictionary, const at::Tensor& xc_bd,
                        const SelectRows& rows, const EncodeWith& with) {
  const bool training = with.purpose == EncodeFor::training;
  const double half = training ? dictionary.config.jumprelu_bandwidth / 2 : 0;
  const at::Tensor bound = dictionary.extra_l[0] - half;
  const at::Tensor real = xc_bd.narrow(0, 0, rows.real_rows), bias = dictionary.b_enc_l - bound;
  Codes listed = kernels_for(xc_bd).above({real, dictionary.w_enc_ld, bias}, 0);
  listed = with_padding_rows(std::move(listed), xc_bd.size(0));
  Encoded out;
  if (training) out.edges = entries_where(listed, listed.value.lt(2 * half));
  // Below it, unless it is NaN, which has to stay visible.
  if (training) listed = entries_where(listed, listed.value.le(half).logical_not());
  listed.value.add_(bound.index_select(0, listed.latent));
  out.codes = std::move(listed);
  return out;
}

constexpr double zero(const ModelConfig&) {
  return 0;
}
constexpr LatentParameter kMagnitudes[] = {
    {.name = "r_mag", .start = zero}, {.name = "b_mag", .start = zero, .pre_activation = true}};

Encoded encode_gated(const Mesh&, const Dictionary& dictionary, const at::Tensor& xc_bd,
                     const SelectRows& rows, const EncodeWith& with) {
  GatedCodes both = gated_codes(dictionary, encode_above(dictionary, xc_bd, rows, 0).codes);
  Encoded out{std::move(both.codes)};
  if (with.purpose == EncodeFor::training) out.gates = std::move(both.gates);
  return out;
}

constexpr std::array<ActivationFn, 5> kActivations = {{
    {"topk", "the k largest of each row, then ReLU (B6)", encode_topk, false, true, false},
    {"relu", "ReLU with an L1 penalty weighted by decoder norm (B1)", encode_relu, true, false,
     false},
    {"batchtopk", "the B k largest of a batch of B rows, then ReLU; later a threshold (B12)",
     encode_batch_topk, false, true, true},
    {"jumprelu", "v above a threshold that each latent learns, with an L0 penalty (B8)",
     encode_jumprelu, false, false, false, true, false, kThresholds},
    {"gated", "a gate that pays L1 and opens, a magnitude that flows (B7)", encode_gated, true,
     false, false, false, true, kMagnitudes, "b_gate"},
}};

}  // namespace

std::span<const ActivationFn> all_activations() {
  return kActivations;
}

const ActivationFn& activation_named(const std::string& name) {
  for (const ActivationFn& activation : kActivations)
    if (activation.name == name) return activation;
  fail_agreed(ExitCode::usage, "unknown activation '" + name + "'");
}

int64_t listed_latents(const ModelConfig& config) {
  const ActivationFn& activation = activation_named(config.activation);
  if (!activation.has_k) return 0;
  return activation.whole_batch ? list_width(config.k) : config.k;
}

}  // namespace megadict
