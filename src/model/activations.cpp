#include "model/activations.h"

#include <ATen/ATen.h>

#include <array>

#include "base/error.h"
#include "kernels/kernel_set.h"
#include "model/topk.h"

namespace megadict {

namespace {

Codes encode_topk(Communicator& feature, const Dictionary& dictionary, const at::Tensor& xc_bd,
                  const SelectRows& rows, const EncodeWith& with) {
  const EncodeArgs input{xc_bd, dictionary.w_enc_ld, dictionary.b_enc_l};
  const int64_t k = dictionary.config.k;
  const Candidates candidates = with.screen != nullptr ? with.screen->topk(input, k, with.check)
                                                       : kernels_for(xc_bd).topk(input, k);
  SelectArgs args{k, rows.slot, rows.real_rows, 0, {}};
  for (int f = 0; f < feature.size(); ++f)
    args.shard_latents.push_back(shard_of(dictionary.n, feature.size(), f).size());
  return select_topk(feature, candidates, args);
}

// Padding rows are cut off before encoding and come back empty.
Codes encode_relu(Communicator&, const Dictionary& dictionary, const at::Tensor& xc_bd,
                  const SelectRows& rows, const EncodeWith&) {
  const at::Tensor real = xc_bd.narrow(0, 0, rows.real_rows);
  Codes codes = kernels_for(xc_bd).positive({real, dictionary.w_enc_ld, dictionary.b_enc_l});
  const int64_t padding = xc_bd.size(0) - rows.real_rows;
  if (padding > 0) {
    const at::Tensor end = codes.row_start.narrow(0, rows.real_rows, 1).expand({padding});
    codes.row_start = at::cat({codes.row_start, end});
    codes.rows = xc_bd.size(0);
  }
  return codes;
}

constexpr std::array<ActivationFn, 2> kActivations = {{
    {"topk", "the k largest of each row, then ReLU (B6)", encode_topk, false, true},
    {"relu", "ReLU with an L1 penalty weighted by decoder norm (B1)", encode_relu, true, false},
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

}  // namespace megadict
