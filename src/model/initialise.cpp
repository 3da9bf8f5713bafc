#include "model/initialise.h"

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/parallel_guard.h"
#include "base/philox.h"
#include "model/forward.h"
#include "model/hidden.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr int64_t kBlockRows = 1024;  // sums run over fixed blocks: equal bits for any threads

at::Tensor blocked_sum(const at::Tensor& rows_md, const at::Tensor& weight_m) {
  at::Tensor total = at::zeros({rows_md.size(1)}, rows_md.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < rows_md.size(0); begin += kBlockRows) {
    const int64_t count = std::min(kBlockRows, rows_md.size(0) - begin);
    const at::Tensor block = rows_md.narrow(0, begin, count).to(at::kDouble);
    total += (block * weight_m.narrow(0, begin, count).unsqueeze(1)).sum(0);
  }
  return total;
}

at::Tensor distances(const at::Tensor& rows_md, const at::Tensor& centre_d) {
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < rows_md.size(0); begin += kBlockRows) {
    const int64_t count = std::min(kBlockRows, rows_md.size(0) - begin);
    parts.push_back((rows_md.narrow(0, begin, count).to(at::kDouble) - centre_d).norm(2, 1));
  }
  return at::cat(parts);
}

// Row `latent` of a random dictionary: d normals, scaled to unit length.
void random_unit_row(uint64_t seed, int64_t latent, int64_t d, float* row) {
  const Rng rng{seed, Purpose::init_weights, 0};
  std::vector<double> values(static_cast<size_t>(d));
  double square = 0;
  for (int64_t i = 0; i < d; i += 2) {
    const auto pair = rng.normals(static_cast<uint64_t>(latent), static_cast<uint32_t>(i / 2));
    for (int64_t j = i; j < std::min(i + 2, d); ++j) {
      values[static_cast<size_t>(j)] = pair[static_cast<size_t>(j - i)];
      square += values[static_cast<size_t>(j)] * values[static_cast<size_t>(j)];
    }
  }
  for (int64_t i = 0; i < d; ++i)
    row[i] = static_cast<float>(values[static_cast<size_t>(i)] / std::sqrt(square));
}

// Beside hidden layers: U(+-1 / sqrt(width)), weights and biases (B3, B4).
void draw_encoder(uint64_t seed, Dictionary& out) {
  const int64_t width = out.w_enc_ld.size(1);
  const double bound = 1 / std::sqrt(static_cast<double>(width));
  at::Tensor rows = at::empty({out.latents.size(), width + 1}, at::kFloat);
  float* value = rows.mutable_data_ptr<float>();
  for (int64_t l = 0; l < out.latents.size(); ++l) {
    const auto latent = static_cast<uint64_t>(out.latents.begin + l);
    const Rng rng{seed, Purpose::init_encoder, latent};
    for (int64_t i = 0; i <= width; ++i)
      *value++ = static_cast<float>((2 * rng.uniform(static_cast<uint64_t>(i)) - 1) * bound);
  }
  out.w_enc_ld.copy_(rows.narrow(1, 0, width));
  out.b_enc_l.copy_(rows.select(1, width));
}

// s = <xc, y> / <y, y> with y the decoded codes under W_enc = W_dec: what the encoder has to be
// multiplied by, because the activations are positively homogeneous while b_enc is zero.
double least_squares_scale(const Mesh& mesh, const Dictionary& dictionary,
                           const at::Tensor& sample_md) {
  const int64_t rows = std::min(kScaleRows, sample_md.size(0));
  const RowPart part =
      row_part(rows, mesh.data_size(), mesh.feature_size(), mesh.data_index, mesh.feature_index);
  Rows mine{at::zeros({part.padded, dictionary.d}, sample_md.options()), part, rows};
  mine.x_bd.narrow(0, 0, part.row_range.size())
      .copy_(sample_md.narrow(0, part.row_range.begin, part.row_range.size()));
  const Forward fwd = forward(mesh, dictionary, mine, {EncodeFor::training}, Sums::exact);
  const int64_t owned = part.owned.size();
  const at::Tensor xc = fwd.target_sd.narrow(0, 0, owned).to(at::kDouble);
  const at::Tensor y = fwd.residual_sd.narrow(0, 0, owned).to(at::kDouble) + xc;
  const at::Tensor terms = at::stack({(xc * y).sum(1), (y * y).sum(1)}, 1);
  const at::Tensor sums = exact_sum(mesh, terms, rows, "encoder scale");
  const double xy = sums[0].item<double>(), yy = sums[1].item<double>();
  return yy > 0 && xy > 0 ? xy / yy : 1.0;
}

at::Tensor mean_of_rows(const at::Tensor& rows_md) {
  const at::Tensor ones = at::ones({rows_md.size(0)}, rows_md.options().dtype(at::kDouble));
  return blocked_sum(rows_md, ones) / static_cast<double>(rows_md.size(0));
}

at::Tensor b_dec_start(const ModelConfig& config, const at::Tensor& sample_md) {
  if (config.b_dec_start == "geometric_median") return geometric_median(sample_md);
  if (config.b_dec_start == "mean") return mean_of_rows(sample_md).to(at::kFloat);
  if (config.b_dec_start == "zero") return at::zeros({sample_md.size(1)}, sample_md.options());
  fail_agreed(ExitCode::usage, "unknown model.b_dec_start '" + config.b_dec_start + "'");
}

}  // namespace

at::Tensor geometric_median(const at::Tensor& rows_md) {
  const at::Tensor ones = at::ones({rows_md.size(0)}, rows_md.options().dtype(at::kDouble));
  at::Tensor centre = mean_of_rows(rows_md);
  for (int iteration = 0; iteration < 50; ++iteration) {
    const at::Tensor weight = distances(rows_md, centre).clamp_min(1e-12).reciprocal();
    const at::Tensor next = blocked_sum(rows_md, weight) / blocked_sum(ones.unsqueeze(1), weight);
    const double moved = (next - centre).norm().item<double>();
    const double size = next.norm().item<double>();
    centre = next;
    if (moved <= 1e-6 * (size + 1e-30)) break;
  }
  return centre.to(at::kFloat);
}

Dictionary empty_dictionary(const ModelConfig& config, int64_t n, int64_t d, Range latents,
                            int64_t padded, at::Device device) {
  const auto options = at::TensorOptions(at::kFloat).device(device);
  Dictionary out{config, n, d, latents, {}, {}, {}, {}};
  out.w_enc_ld =
      at::zeros({padded, encoder_width(config, d)}, options).narrow(0, 0, latents.size());
  out.w_dec_ld =
      out.tied() ? out.w_enc_ld : at::zeros({padded, d}, options).narrow(0, 0, latents.size());
  out.b_enc_l = at::zeros({padded}, options).narrow(0, 0, latents.size());
  out.b_dec_d = at::zeros({d}, options);
  out.hidden = empty_hidden(config, d, device);
  for (const LatentParameter& parameter : activation_named(config.activation).parameters)
    out.extra_l.push_back(
        at::full({padded}, parameter.start(config), options).narrow(0, 0, latents.size()));
  return out;
}

Dictionary initialise(const Mesh& mesh, const ModelConfig& config, int64_t n, Range latents,
                      int64_t padded, const at::Tensor& sample_md, uint64_t seed) {
  const int64_t d = sample_md.size(1);
  Dictionary out = empty_dictionary(config, n, d, latents, padded, sample_md.device());
  at::Tensor rows = at::empty({latents.size(), d}, at::kFloat);
  float* row = rows.mutable_data_ptr<float>();
  ParallelGuard guard;
#pragma omp parallel for schedule(static)
  for (int64_t l = 0; l < latents.size(); ++l)
    guard.run([&] { random_unit_row(seed, latents.begin + l, d, row + l * d); });
  guard.rethrow();
  out.w_dec_ld.copy_(rows);
  out.b_dec_d.copy_(b_dec_start(config, sample_md));
  draw_hidden(config, seed, out.hidden);
  // No scale fits where the reconstruction is not proportional to it.
  if (has_front(config) || has_back(config)) {
    draw_encoder(seed, out);
    return out;
  }
  if (!out.tied()) out.w_enc_ld.copy_(rows);
  const double s = least_squares_scale(mesh, out, sample_md);
  out.w_enc_ld.mul_(out.tied() ? std::sqrt(s) : s);
  return out;
}

}  // namespace megadict
