#include "lab/layer_connector.h"

#include <algorithm>
#include <cmath>

#include "base/buffer_view.h"

namespace megadict {

namespace {

struct CodePair {
  Rows from, to;
};

double connector_mse(const Connector<float>& connector, const CodePair& codes) {
  Tiles<float> from, to, got, unused;
  double sum = 0;
  for_pieces(codes.from.count, kPiece, [&](std::span<const int32_t> which) {
    const auto samples = static_cast<int64_t>(which.size());
    for (Tiles<float>* tiles : {&from, &to, &got, &unused}) fit(*tiles, samples, codes.from.width);
    gather_rows(codes.from, which, from);
    gather_rows(codes.to, which, to);
    connector.forward(from, got);
    sum += synthetic_loss(to, got, got, 0, unused).mse * static_cast<double>(samples);
  });
  return sum / static_cast<double>(codes.from.count);
}

void find_silent(const CodePair& codes, LayerConnector& layer) {
  const auto latents = static_cast<size_t>(codes.to.width);
  std::vector<char> speaks(latents, 0);
  std::vector<double> squares(latents, 0);
  Tiles<float> from, got;
  for_pieces(codes.from.count, kPiece, [&](std::span<const int32_t> which) {
    const auto samples = static_cast<int64_t>(which.size());
    for (Tiles<float>* tiles : {&from, &got}) fit(*tiles, samples, codes.from.width);
    gather_rows(codes.from, which, from);
    layer.connector.forward(from, got);
    for (int64_t i = 0; i < samples; ++i)
      for (size_t j = 0; j < latents; ++j) {
        const double wanted = codes.to.row(which[static_cast<size_t>(i)])[j];
        squares[j] += wanted * wanted;
        if (got.at(i, static_cast<int64_t>(j)) > 0) speaks[j] = 1;
      }
  });
  const auto entries = static_cast<double>(codes.to.values.size());
  layer.silent = layer.silent_mse = 0;
  for (size_t j = 0; j < latents; ++j) {
    if (speaks[j] != 0 || squares[j] == 0) continue;
    layer.silent += 1;
    layer.silent_mse += squares[j] / entries;
  }
}

void note_epoch(const CodePair& validation, LayerConnector& layer) {
  const Learnt<float>& w = layer.connector.map.weight;
  double sum = 0;
  for (const float value : w.value) {
    sum += std::abs(static_cast<double>(value));
    layer.matrices.push_back(float_to_half(value));
  }
  layer.mse_by_epoch.push_back(connector_mse(layer.connector, validation));
  layer.l1_by_epoch.push_back(sum / static_cast<double>(w.value.size()));
  layer.above_by_epoch.push_back(static_cast<double>(count_above(w, kLargeWeight)));
}

LayerConnector train_connector(const NetworkSettings& s, const CodePair& train,
                               const CodePair& validation, Connector<float> start, double lambda,
                               uint64_t part) {
  LayerConnector out{std::move(start), {}, {}, {}, {}, {}};
  note_epoch(validation, out);
  AdamOfAll adam(s.rate);
  ConnectorPass<float> pass;
  Tiles<float> from, to;
  const auto step = [&](std::span<const int32_t> which) {
    for (Tiles<float>* tiles : {&from, &to})
      fit(*tiles, static_cast<int64_t>(which.size()), s.latents);
    gather_rows(train.from, which, from);
    gather_rows(train.to, which, to);
    const ConnectorLoss loss = out.connector.gradients(from, to, lambda, pass);
    adam.step({&out.connector.map.weight, &out.connector.map.bias});
    return loss.total;
  };
  for_batches(train.from.count, batches_of(s, s.epochs, part), step, [&](double loss) {
    out.train_loss_by_epoch.push_back(loss);
    note_epoch(validation, out);
  });
  find_silent(validation, out);
  return out;
}

}  // namespace

std::vector<LayerConnector> train_connectors(const BaseNetwork& base,
                                             const std::vector<LayerSae>& saes, bool closed,
                                             double lambda) {
  const NetworkSettings& s = base.settings;
  std::vector<LayerConnector> connectors;
  CodePair train{{}, codes_of(saes[0].sae, base.train[0])};
  CodePair validation{{}, codes_of(saes[0].sae, base.validation[0])};
  for (size_t l = 0; l + 1 < kLayers; ++l) {
    train = {std::move(train.to), codes_of(saes[l + 1].sae, base.train[l + 1])};
    validation = {std::move(validation.to), codes_of(saes[l + 1].sae, base.validation[l + 1])};
    const uint64_t part = kConnector + l;
    connectors.push_back(train_connector(
        s, train, validation,
        closed ? closed_connector(saes[l].sae, base.net.layers()[l + 1], saes[l + 1].sae)
               : random_connector<float>(s.latents, seed_of(s, part)),
        lambda, part));
  }
  return connectors;
}

Accuracies accuracies(const BaseNetwork& base, const std::vector<LayerSae>& saes,
                      const std::vector<const Connector<float>*>& connectors) {
  const Images& images = base.data.validation;
  const Linear<float>& last = base.net.layers().back();
  SaePass<float> pass;
  Tiles<float> x, codes, next, logits;
  Accuracies out;
  for_pieces(images.count(), kPiece, [&](std::span<const int32_t> which) {
    const auto samples = static_cast<int64_t>(which.size());
    const std::vector<uint8_t> labels = labels_of(images, which);
    fit(x, samples, kNeurons);
    fit(logits, samples, kDigits);
    const auto right = [&](const Tiles<float>& third) {
      last.forward(third, logits);
      return static_cast<double>(count_correct(logits, labels)) /
             static_cast<double>(images.count());
    };
    gather_rows(base.validation[kLayers - 1], which, x);
    out.base += right(x);
    saes[kLayers - 1].sae.forward(x, pass);
    out.reconstructed += right(pass.x_hat);
    gather_rows(base.validation[0], which, x);
    saes[0].sae.forward(x, pass);
    codes = pass.codes;
    for (const Connector<float>* connector : connectors) {
      fit(next, samples, codes.features());
      connector->forward(codes, next);
      std::swap(codes, next);
    }
    decode(saes[kLayers - 1].sae, codes, x);
    out.simulated += right(x);
  });
  return out;
}

}  // namespace megadict
