#include "lab/layer_sae.h"

namespace megadict {

namespace {

constexpr double kActive = 0.3;  // a latent that counts (B2)

SmallSae<float> make_sae(const NetworkSettings& s, DecoderKind kind, double lambda, uint64_t part) {
  constexpr uint64_t kDecoderStream = 10, kBiasStream = 11;
  SmallSae<float> sae({.width = kNeurons,
                       .latents = s.latents,
                       .tied = kind == DecoderKind::tied,
                       .encoder_bias = true,
                       .lambda = lambda,
                       .unit_columns = kind == DecoderKind::unit_columns,
                       .seed = seed_of(s, part)});
  const std::vector<Learnt<float>*> all = sae.parameters();  // W, b, and where untied the decoder
  draw_uniform(*all[1], kNeurons, seed_of(s, part), kBiasStream);
  if (all.size() > 2) draw_uniform(*all[2], s.latents, seed_of(s, part), kDecoderStream);
  sae.normalise();
  return sae;
}

void judge_sae(const Rows& activations, LayerSae& layer) {
  SaePass<float> pass;
  Tiles<float> x;
  const auto entries = static_cast<double>(activations.count);
  layer.mse = layer.l1 = layer.active = layer.above = 0;
  for_pieces(activations.count, kPiece, [&](std::span<const int32_t> which) {
    const auto samples = static_cast<int64_t>(which.size());
    fit(x, samples, activations.width);
    gather_rows(activations, which, x);
    layer.sae.forward(x, pass);
    fit(pass.d_x_hat, samples, activations.width);
    const SaeLoss loss = synthetic_loss(x, pass.x_hat, pass.codes, 1, pass.d_x_hat);
    layer.mse += loss.mse * static_cast<double>(samples) / entries;
    layer.l1 += loss.penalty * static_cast<double>(samples) / entries;
    for (const float z : pass.codes.values()) {
      layer.active += z > 0 ? 1 / entries : 0;
      layer.above += z > static_cast<float>(kActive) ? 1 / entries : 0;
    }
    if (which[0] != 0) return;
    layer.above_in_first = 0;
    for (int64_t j = 0; j < pass.codes.features(); ++j)
      layer.above_in_first += pass.codes.at(0, j) > static_cast<float>(kActive) ? 1 : 0;
  });
}

LayerSae train_sae(const BaseNetwork& base, size_t layer, DecoderKind kind, double lambda) {
  const NetworkSettings& s = base.settings;
  LayerSae out{make_sae(s, kind, lambda, kSae + layer), {}, {}, {}};
  AdamOfAll adam(s.rate);
  SaePass<float> pass;
  Tiles<float> x;
  const auto step = [&](std::span<const int32_t> which) {
    fit(x, static_cast<int64_t>(which.size()), kNeurons);
    gather_rows(base.train[layer], which, x);
    out.sae.normalise();
    const SaeLoss loss = out.sae.gradients(x, pass);
    adam.step(out.sae.parameters());
    return loss.total;
  };
  for_batches(base.train[layer].count, batches_of(s, s.epochs, kSae + layer), step,
              [&](double loss) {
                out.sae.normalise();
                judge_sae(base.validation[layer], out);
                out.train_loss_by_epoch.push_back(loss);
                out.mse_by_epoch.push_back(out.mse);
                out.l1_by_epoch.push_back(out.l1);
              });
  return out;
}

}  // namespace

std::string_view name_of(DecoderKind kind) {
  constexpr std::string_view kNames[] = {"tied", "unit", "free"};
  return kNames[static_cast<size_t>(kind)];
}

std::vector<LayerSae> train_saes(const BaseNetwork& base, DecoderKind kind, double lambda) {
  std::vector<LayerSae> saes;
  for (size_t l = 0; l < kLayers; ++l) saes.push_back(train_sae(base, l, kind, lambda));
  return saes;
}

Rows codes_of(const SmallSae<float>& sae, const Rows& activations) {
  Rows codes(activations.count, sae.settings().latents);
  SaePass<float> pass;
  Tiles<float> x;
  for_pieces(activations.count, kPiece, [&](std::span<const int32_t> which) {
    fit(x, static_cast<int64_t>(which.size()), activations.width);
    gather_rows(activations, which, x);
    sae.forward(x, pass);
    store_rows(pass.codes, which[0], codes);
  });
  return codes;
}

}  // namespace megadict
