// A random dictionary as it might have been trained, and what it computes, by the formula in fp64.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/philox.h"
#include "model/saved.h"

namespace megadict::test {

inline at::Tensor random_tensor(at::IntArrayRef shape, uint64_t draw) {
  at::Tensor out = at::empty(shape, at::kDouble);
  const Rng rng{31, Purpose::test, draw};
  for (int64_t i = 0; i < out.numel(); ++i)
    out.mutable_data_ptr<double>()[i] = rng.normals(static_cast<uint64_t>(i))[0];
  return out;
}

// Scale .37, a mean that is not zero, unit decoder rows (free ones when tied).
inline SavedDictionary random_dictionary(const std::string& activation, const std::string& decoder,
                                         int64_t n = 40, int64_t d = 12) {
  SavedDictionary saved;
  Dictionary& out = saved.dictionary;
  out.config.activation = activation;
  out.config.decoder = decoder;
  out.config.n_latents = out.n = n;
  out.config.k = 5;
  out.d = d;
  out.latents = {0, n};
  at::Tensor rows = random_tensor({n, d}, 1);
  if (decoder == "linear") rows = rows / rows.norm(2, {1}, true);
  out.w_dec_ld = rows.to(at::kFloat);
  out.w_enc_ld =
      decoder == "tied" ? out.w_dec_ld : (rows + 0.1 * random_tensor({n, d}, 2)).to(at::kFloat);
  out.b_enc_l = (0.1 * random_tensor({n}, 3)).to(at::kFloat);
  out.b_dec_d = (0.3 * random_tensor({d}, 4)).to(at::kFloat);
  if (activation == "batchtopk") out.threshold = 1.3;  // some five latents of a row
  if (activation == "jumprelu")
    out.extra_l = {(0.8 + 0.5 * random_tensor({n}, 11)).to(at::kFloat).clamp_min(0.01f)};
  if (activation == "gated")
    out.extra_l = {(0.2 * random_tensor({n}, 11)).to(at::kFloat),
                   (0.1 * random_tensor({n}, 12)).to(at::kFloat)};
  saved.normalization.scale = 0.37;
  const at::Tensor mean = (2 + random_tensor({d}, 5)).to(at::kFloat);
  saved.normalization.mean.assign(mean.const_data_ptr<float>(), mean.const_data_ptr<float>() + d);
  saved.step = 1000;
  saved.tokens = 4096000;
  saved.source_model = "gpt2";
  saved.hook = "blocks.8.hook_resid_pre";
  saved.layer = 8;
  return saved;
}

// Raw rows around the mean of random_dictionary().
inline at::Tensor random_rows(const SavedDictionary& like, int64_t rows, uint64_t draw) {
  at::Tensor x = 3 * random_tensor({rows, like.dictionary.d}, draw);
  if (!like.normalization.mean.empty()) x += at::tensor(like.normalization.mean).to(at::kDouble);
  return x.to(at::kFloat);
}

struct Reconstruction {
  at::Tensor z_bn, x_hat_bd;  // fp64, dense
};

inline Reconstruction reconstruct(const SavedDictionary& saved, const at::Tensor& x_bd) {
  const Dictionary& dictionary = saved.dictionary;
  const at::Tensor mean = saved.normalization.mean.empty()
                              ? at::zeros({dictionary.d}, at::kDouble)
                              : at::tensor(saved.normalization.mean).to(at::kDouble);
  const double s = saved.normalization.scale;
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  const at::Tensor y = s * (wide(x_bd) - mean) - wide(dictionary.b_dec_d);
  at::Tensor z = at::mm(y, wide(dictionary.w_enc_ld).t()) + wide(dictionary.b_enc_l);
  if (dictionary.config.activation == "topk") {
    const auto [value, index] = z.topk(std::min(dictionary.config.k, dictionary.n), 1);
    z = at::zeros_like(z).scatter(1, index, value);
  }
  if (dictionary.config.activation == "batchtopk")
    z = z * z.gt(static_cast<float>(dictionary.threshold));
  if (dictionary.config.activation == "jumprelu") z = z * z.gt(wide(dictionary.extra_l[0]));
  if (dictionary.config.activation == "gated") {
    const at::Tensor product = z - wide(dictionary.b_enc_l);
    z = (product * wide(dictionary.extra_l[0]).exp() + wide(dictionary.extra_l[1])) * z.gt(0);
  }
  z = z.clamp_min(0);
  return {z, (at::mm(z, wide(dictionary.w_dec_ld)) + wide(dictionary.b_dec_d)) / s + mean};
}

inline double relative(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>() / b.abs().max().item<double>();
}

// The same codes, up to a factor of the latents, and the same reconstruction.
inline void expect_same_function(const SavedDictionary& a, const SavedDictionary& b,
                                 double z_factor) {
  const at::Tensor x = random_rows(a, 200, 9);
  const auto ours = reconstruct(a, x), theirs = reconstruct(b, x);
  EXPECT_TRUE(at::equal(ours.z_bn > 0, theirs.z_bn > 0));
  EXPECT_LT(relative(theirs.z_bn * z_factor, ours.z_bn), 1e-6);
  EXPECT_LT(relative(theirs.x_hat_bd, ours.x_hat_bd), 1e-6);
}

}  // namespace megadict::test
