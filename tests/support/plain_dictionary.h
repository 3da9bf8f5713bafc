// Random dictionaries of every activation as files hold them, and what they compute, by the
// formulas of model/folding.h in fp64.
#pragma once

#include "model/formats.h"
#include "support/random_dictionary.h"

namespace megadict::test {

inline const std::vector<std::string>& plain_activations() {
  static const std::vector<std::string> all = {"topk",     "relu",  "batchtopk",
                                               "jumprelu", "gated", "prolu"};
  return all;
}

inline PlainDictionary random_plain(const std::string& activation, const std::string& decoder,
                                    int64_t n = 40, int64_t d = 12) {
  const bool trained = activation != "gated" && activation != "prolu";
  PlainDictionary out = plain_of(random_dictionary(trained ? activation : "relu", decoder, n, d));
  out.activation = activation;
  const auto numbers = [&](double mean, double spread, uint64_t draw) {
    return (mean + spread * random_tensor({n}, draw)).to(at::kFloat);
  };
  if (activation == "prolu") out.b_enc_n = numbers(-0.7, 0.5, 12);
  if (activation == "gated") {
    out.b_enc_n = at::Tensor();
    out.r_mag_n = numbers(0, 0.4, 13);
    out.b_gate_n = numbers(-0.8, 0.5, 14);
    out.b_mag_n = numbers(0.1, 0.6, 15);
  }
  return out;
}

// Without normalisation, as an export leaves it.
inline SavedDictionary folded_saved(const SavedDictionary& saved,
                                    ExportScale scale = ExportScale::unit) {
  const FoldTo same{saved.dictionary.config.activation, scale};
  return saved_of(folded(plain_of(saved), same), "the test's");
}

inline Reconstruction reconstruct(const PlainDictionary& plain, const at::Tensor& x_bd) {
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  const at::Tensor mean = plain.normalization.mean.empty()
                              ? at::zeros({plain.d}, at::kDouble)
                              : wide(at::tensor(plain.normalization.mean));
  const double s = plain.normalization.scale;
  at::Tensor u = s * (wide(x_bd) - mean);
  if (plain.subtracts_b_dec) u = u - wide(plain.b_dec_d);
  const at::Tensor g = at::mm(u, wide(plain.w_enc_nd).t());
  at::Tensor z = plain.b_enc_n.defined() ? g + wide(plain.b_enc_n) : g;
  if (plain.activation == "topk") {
    const auto [value, index] = z.topk(plain.k, 1);
    z = at::zeros_like(z).scatter(1, index, value);
  }
  if (plain.threshold_n.defined()) z = z * z.gt(wide(plain.threshold_n));
  if (plain.activation == "prolu") z = g * z.gt(0);
  if (plain.activation == "gated")
    z = (g * wide(plain.r_mag_n).exp() + wide(plain.b_mag_n)) * (g + wide(plain.b_gate_n)).gt(0);
  z = z.clamp_min(0);
  return {z, (at::mm(z, wide(plain.w_dec_nd)) + wide(plain.b_dec_d)) / s + mean};
}

// The same support and the same reconstruction of raw rows; codes up to `z_factor`, one number or
// one for each latent.
inline void expect_same_function(const PlainDictionary& a, const PlainDictionary& b,
                                 const at::Tensor& z_factor) {
  at::Tensor x = 3 * random_tensor({200, a.d}, 9);
  if (!a.normalization.mean.empty()) x += at::tensor(a.normalization.mean).to(at::kDouble);
  const auto ours = reconstruct(a, x.to(at::kFloat)), theirs = reconstruct(b, x.to(at::kFloat));
  EXPECT_TRUE(at::equal(ours.z_bn > 0, theirs.z_bn > 0));
  EXPECT_GT((ours.z_bn > 0).sum().item<int64_t>(), 200);
  EXPECT_LT((ours.z_bn > 0).sum().item<int64_t>(), 200 * a.n * 3 / 4);
  EXPECT_LT(relative(theirs.z_bn * z_factor, ours.z_bn), 2e-6);
  EXPECT_LT(relative(theirs.x_hat_bd, ours.x_hat_bd), 2e-6);
}

}  // namespace megadict::test
