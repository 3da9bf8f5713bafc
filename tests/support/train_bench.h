// A small fixed training problem for tests that compare meshes and communicators.
#pragma once

#include <ATen/ATen.h>

#include <cstring>
#include <string>
#include <vector>

#include "model/generic.h"
#include "model/initialise.h"
#include "train/step.h"

namespace megadict {

struct Case {
  const char* name;
  const char* activation;
  const char* decoder;
  int64_t batch, micro;
  double auxk_alpha;
};

inline constexpr int64_t kLatents = 131, kWidth = 24, kActive = 5, kAux = 9;
inline constexpr double kL1 = 0.3;

inline at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator);
}

// The same dictionary for every mesh: this rank's rows of it.
inline Dictionary shard_of_fixed(const Case& c, const Mesh& mesh) {
  const Range latents = shard_of(kLatents, mesh.feature_size(), mesh.feature_index);
  const int64_t padded = ceil_div(latents.size(), mesh.data_size()) * mesh.data_size();
  ModelConfig model;
  model.activation = c.activation;
  model.decoder = c.decoder;
  model.k = kActive;
  model.n_latents = kLatents;
  model.l1_coefficient = kL1;
  Dictionary out = empty_dictionary(model, kLatents, kWidth, latents, padded, at::kCPU);
  const auto rows = [&](const at::Tensor& all) {
    return all.narrow(0, latents.begin, latents.size());
  };
  const at::Tensor w_dec = random({kLatents, kWidth}, 1);
  out.w_dec_ld.copy_(rows(w_dec / w_dec.norm(2, {1}, true)));
  if (!out.tied()) out.w_enc_ld.copy_(rows(random({kLatents, kWidth}, 2)));
  out.b_enc_l.copy_(rows(random({kLatents}, 3) * 0.1));
  out.b_dec_d.copy_(random({kWidth}, 4) * 0.3);
  return out;
}

struct Bench {
  Mesh mesh;
  TrainState state;
  StepConfig config;
  at::Tensor x;  // the global batch

  Bench(const Case& c, Communicator& world, const MeshConfig& shape)
      : mesh(make_mesh(world, shape)), x(random({c.batch, kWidth}, 5)) {
    state.dictionary = shard_of_fixed(c, mesh);
    state.var_total = 20;
    reset_optimiser(mesh, false, state);
    state.tokens = 1000;
    state.tokens_since_fired_l.slice(0, 0, c10::nullopt, 3).fill_(1000);
    // Every third latent of the whole dictionary, whatever the shard.
    for (int64_t l = 0; l < state.dictionary.latents.size(); ++l)
      state.tokens_since_fired_l[l] = (state.dictionary.latents.begin + l) % 3 == 0 ? 1000 : 0;
    config.optim.lr = 1e-3;
    config.optim.warmup_steps = 0;
    config.optim.decay_fraction = 0;
    config.dead = {c.auxk_alpha, kAux, 500};
    config.total_steps = 10;
  }

  MicroBatch micro(const Case& c, int64_t index) const {
    MicroBatch out;
    const int64_t size = c.micro > 0 ? c.micro : c.batch, begin = index * size;
    out.micro = index;
    out.batch_rows = c.batch;
    out.rows = std::min(size, c.batch - begin);
    out.last_of_step = begin + out.rows == c.batch;
    out.part = row_part(out.rows, mesh.data_size(), mesh.feature_size(), mesh.data_index,
                        mesh.feature_index);
    out.data.resize(static_cast<size_t>(out.part.slot * kWidth) * sizeof(float));
    const int64_t owned = out.part.owned.size();
    const int64_t first = begin + out.part.row_range.begin + out.part.owned.begin;
    for (int64_t i = 0; i < owned; ++i) out.row_ids.push_back(first + i);
    if (owned > 0)
      std::memcpy(out.data.data(), x.const_data_ptr<float>() + first * kWidth,
                  static_cast<size_t>(owned * kWidth) * sizeof(float));
    return out;
  }

  GenericLoss oracle(const Case& c) const {
    Case whole = c;
    whole.micro = 0;
    const Rows rows = gather_rows(mesh, micro(whole, 0), kWidth, {}, at::kCPU);
    GenericArgs args{state.var_total, c.batch, std::string(c.activation) == "relu" ? kL1 : 0.0,
                     c.auxk_alpha,    kAux,    state.tokens_since_fired_l.ge(500)};
    return generic_loss(mesh, state.dictionary, rows, args);
  }
};

// All D x F of a number of ranks.
inline std::vector<MeshConfig> meshes_of_ranks(int ranks) {
  std::vector<MeshConfig> out;
  for (int data = 1; data <= ranks; ++data)
    if (ranks % data == 0) out.push_back({data, ranks / data});
  return out;
}

}  // namespace megadict
