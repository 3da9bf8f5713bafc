#include "lab/network_files.h"

#include <algorithm>
#include <numeric>

#include "base/buffer_view.h"
#include "io/file.h"
#include "io/npy.h"

namespace megadict {

namespace {

constexpr int64_t kDrawn = 16, kTop = 10;

template <class T>
void write_npy(const std::string& path, const std::vector<int64_t>& shape,
               const std::vector<T>& values, DType dtype = dtype_of<T>()) {
  AtomicFile file(path);
  file.write(npy_header_text(dtype, shape));
  file.write(values.data(), values.size() * sizeof(T));
  file.commit();
}

// [width, kTop]
std::vector<int32_t> top_images(const Rows& rows) {
  std::vector<int32_t> top;
  std::vector<int32_t> order(static_cast<size_t>(rows.count));
  const auto kept = static_cast<size_t>(std::min(kTop, rows.count));
  for (int64_t j = 0; j < rows.width; ++j) {
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                      [&](int32_t a, int32_t b) {
                        const float x = rows.row(a)[j], y = rows.row(b)[j];
                        return x != y ? x > y : a < b;
                      });
    for (size_t i = 0; i < kTop; ++i)
      top.push_back(i < kept && rows.row(order[i])[j] > 0 ? order[i] : -1);
  }
  return top;
}

std::vector<int32_t> most_active(const Rows& codes) {
  std::vector<double> sums(static_cast<size_t>(codes.width));
  for (int64_t i = 0; i < codes.count; ++i)
    for (size_t j = 0; j < sums.size(); ++j) sums[j] += static_cast<double>(codes.row(i)[j]);
  std::vector<int32_t> order(sums.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return sums[static_cast<size_t>(a)] > sums[static_cast<size_t>(b)];
  });
  order.resize(std::min<size_t>(order.size(), kDrawn));
  return order;
}

// top: [.., kTop]; the images of its rows `which`.
void add_images(const Images& images, const std::vector<int32_t>& top,
                const std::vector<int32_t>& which, std::vector<uint8_t>& to) {
  for (const int32_t row : which)
    for (int64_t i = 0; i < kTop; ++i) {
      const int32_t image = top[static_cast<size_t>(row * kTop + i)];
      const size_t at = to.size();
      to.resize(at + kPixels);
      if (image < 0) continue;
      std::copy_n(images.pixels.begin() + image * kPixels, kPixels,
                  to.begin() + static_cast<std::ptrdiff_t>(at));
    }
}

// [width, latents], row-major
void add_decoder(const SmallSae<float>& sae, std::vector<float>& to) {
  const Learnt<float>& encoder = sae.encoder().weight;
  if (!sae.settings().tied) {
    to.insert(to.end(), sae.decoder().value.begin(), sae.decoder().value.end());
    return;
  }
  for (int64_t f = 0; f < encoder.cols; ++f)
    for (int64_t j = 0; j < encoder.rows; ++j)
      to.push_back(encoder.value[static_cast<size_t>(j * encoder.cols + f)]);
}

std::vector<float> latent_pixels(const SmallSae<float>& sae, const Learnt<float>& first_layer,
                                 const std::vector<int32_t>& latents) {
  const Learnt<float>& encoder = sae.encoder().weight;
  std::vector<float> pixels(latents.size() * kPixels);
  for (size_t d = 0; d < latents.size(); ++d)
    for (int64_t n = 0; n < encoder.cols; ++n) {
      const float factor = encoder.value[static_cast<size_t>(latents[d] * encoder.cols + n)];
      for (int64_t p = 0; p < kPixels; ++p)
        pixels[d * kPixels + static_cast<size_t>(p)] +=
            factor * first_layer.value[static_cast<size_t>(n * kPixels + p)];
    }
  return pixels;
}

void write_weights(const std::string& folder, const BaseNetwork& base,
                   const std::vector<LayerConnector>& connectors) {
  constexpr const char* kPairs[] = {"12", "23"};
  for (size_t l = 0; l < connectors.size(); ++l) {
    const Learnt<float>& w = connectors[l].connector.map.weight;
    const auto epochs = static_cast<int64_t>(connectors[l].mse_by_epoch.size());
    write_npy(folder + "/connector_" + kPairs[l] + ".npy", {epochs, w.rows, w.cols},
              connectors[l].matrices, DType::f16);
    write_npy(folder + "/neurons_" + kPairs[l] + ".npy", {kNeurons, kNeurons},
              base.net.layers()[l + 1].weight.value);
  }
}

// The first validation image: its activations, their reconstruction, its latents.
struct Example {
  std::vector<float> neurons, latents;
  void add(const SmallSae<float>& sae, const Rows& activations) {
    const std::vector<int32_t> first(kLane, 0);
    Tiles<float> x(kLane, activations.width);
    gather_rows(activations, first, x);
    SaePass<float> pass;
    sae.forward(x, pass);
    for (int64_t f = 0; f < x.features(); ++f) neurons.push_back(x.at(0, f));
    for (int64_t f = 0; f < x.features(); ++f) neurons.push_back(pass.x_hat.at(0, f));
    for (int64_t j = 0; j < pass.codes.features(); ++j) latents.push_back(pass.codes.at(0, j));
  }
};

}  // namespace

void write_network_files(const std::string& folder, const BaseNetwork& base,
                         const std::vector<LayerSae>& saes,
                         const std::vector<LayerConnector>& connectors) {
  const auto append = [](auto& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  std::vector<float> decoders;
  std::vector<int32_t> latent_top, neuron_top, drawn, first_neurons(kDrawn);
  std::vector<uint8_t> latent_images, neuron_images;
  Example example;
  std::iota(first_neurons.begin(), first_neurons.end(), 0);
  for (size_t l = 0; l < kLayers; ++l) {
    const Rows codes = codes_of(saes[l].sae, base.validation[l]);
    const std::vector<int32_t> latents = top_images(codes),
                               neurons = top_images(base.validation[l]);
    const std::vector<int32_t> chosen = most_active(codes);
    if (l == 0)
      write_npy(folder + "/latent_pixels.npy",
                {static_cast<int64_t>(chosen.size()), kImageSide, kImageSide},
                latent_pixels(saes[0].sae, base.net.layers()[0].weight, chosen));
    add_images(base.data.validation, latents, chosen, latent_images);
    add_images(base.data.validation, neurons, first_neurons, neuron_images);
    append(latent_top, latents);
    append(neuron_top, neurons);
    append(drawn, chosen);
    add_decoder(saes[l].sae, decoders);
    example.add(saes[l].sae, base.validation[l]);
  }
  const auto layers = static_cast<int64_t>(kLayers);
  const int64_t latents = base.settings.latents,
                shown = static_cast<int64_t>(drawn.size()) / layers;
  write_weights(folder, base, connectors);
  write_npy(folder + "/decoders.npy", {layers, kNeurons, latents}, decoders);
  write_npy(folder + "/latent_top.npy", {layers, latents, kTop}, latent_top);
  write_npy(folder + "/neuron_top.npy", {layers, kNeurons, kTop}, neuron_top);
  write_npy(folder + "/latents_drawn.npy", {layers, shown}, drawn);
  write_npy(folder + "/latent_images.npy", {layers, shown, kTop, kImageSide, kImageSide},
            latent_images);
  write_npy(folder + "/neuron_images.npy", {layers, kDrawn, kTop, kImageSide, kImageSide},
            neuron_images);
  write_npy(folder + "/example_neurons.npy", {layers, 2, kNeurons}, example.neurons);
  write_npy(folder + "/example_latents.npy", {layers, latents}, example.latents);
}

}  // namespace megadict
