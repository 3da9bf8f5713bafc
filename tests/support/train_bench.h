// A small fixed training problem for tests that compare meshes and communicators.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "model/generic.h"
#include "model/hidden.h"
#include "model/initialise.h"
#include "model/tensor_views.h"
#include "train/step.h"

namespace megadict {

inline at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator);
}

// What is learnt from: the whole dictionary at the start and the global batch.
struct Problem {
  int64_t k, k_aux;
  double l1, var_total;
  at::Tensor w_enc_nd, w_dec_nd, b_enc_n, b_dec_d;
  at::Tensor x_bd;
  // jumprelu's; wide enough to be met.
  at::Tensor threshold_n() const {
    return at::arange(w_dec_nd.size(0)).remainder(7).to(at::kFloat) * 0.3 + 0.05;
  }
  double bandwidth = 0.4;
  // gated's.
  at::Tensor r_mag_n() const {
    return at::arange(w_dec_nd.size(0)).remainder(5).to(at::kFloat) * 0.2 - 0.3;
  }
  at::Tensor b_mag_n() const {
    return at::arange(w_dec_nd.size(0)).remainder(3).to(at::kFloat) * 0.3 - 0.4;
  }
  // Dead: every third latent of the whole dictionary, whatever the shard.
  at::Tensor dead_n() const { return at::arange(w_dec_nd.size(0)).remainder(3).eq(0); }
};

struct Case {
  const char* name;
  const char* activation;
  const char* decoder;
  int64_t batch, micro;
  double auxk_alpha;
  const char* encode = "fp32";
  const char* exchange = "tokens";
  const char* optimiser = "adam";
  const KernelSet* kernels = nullptr;  // for CPU tensors; nullptr = the usual
  const char* matryoshka = "";
  double l0_target = 0;
  double preact = 0;
  bool jumprelu_log = false;
  const char* encoder = "linear";
  const char* hidden = "";
  bool decoder_norm = false;
  bool jumps() const { return std::string(activation) == "jumprelu"; }
  bool gated() const { return std::string(activation) == "gated"; }
  bool relu() const { return std::string(activation) == "relu"; }
  bool whole_batch() const { return std::string(activation) == "batchtopk"; }
  bool tied() const { return std::string(decoder) == "tied"; }
  ModelConfig model() const {
    ModelConfig out;
    out.encoder = encoder;
    out.hidden = hidden;
    out.activation = activation;
    out.decoder = decoder;
    out.decoder_norm = decoder_norm;
    return out;
  }
};

inline at::Tensor unit_rows(const at::Tensor& rows) {
  return rows / rows.norm(2, {1}, true);
}

// Gaussian rows and weights.
inline Problem gaussian_problem(int64_t k, int64_t n, int64_t d, int64_t rows) {
  return {k,
          9,
          0.3,
          20,
          random({n, d}, 2),
          unit_rows(random({n, d}, 1)),
          random({n}, 3) * 0.1,
          random({d}, 4) * 0.3,
          random({rows, d}, 5)};
}

// Sizes that divide by nothing.
inline Problem small_problem(const Case& c) {
  Problem p = gaussian_problem(5, 131, 24, c.batch);
  p.w_enc_nd = random({131, encoder_width(c.model(), 24)}, 2);
  if (c.tied()) p.w_enc_nd = p.w_dec_nd;
  return p;
}

// While it lives, a case's kernels are used.
struct KernelsOf {
  explicit KernelsOf(const Case& c) { use_kernels(c.kernels); }
  ~KernelsOf() { use_kernels(nullptr); }
};

// This rank's rows of the problem's dictionary.
inline Dictionary shard_of_fixed(const Case& c, const Problem& p, const Mesh& mesh) {
  const int64_t n = p.w_dec_nd.size(0), d = p.w_dec_nd.size(1);
  const Range latents = shard_of(n, mesh.feature_size(), mesh.feature_index);
  const int64_t padded = ceil_div(latents.size(), mesh.data_size()) * mesh.data_size();
  ModelConfig model = c.model();
  model.k = p.k;
  model.n_latents = n;
  model.l1_coefficient = p.l1;
  model.matryoshka = c.matryoshka;
  model.jumprelu_bandwidth = p.bandwidth;
  model.jumprelu_log = c.jumprelu_log;
  model.l0_coefficient = 0.7;
  model.l0_target = c.l0_target;
  Dictionary out = empty_dictionary(model, n, d, latents, padded, at::kCPU);
  const auto rows = [&](const at::Tensor& all) {
    return all.narrow(0, latents.begin, latents.size());
  };
  out.w_dec_ld.copy_(rows(p.w_dec_nd));
  if (!out.tied()) out.w_enc_ld.copy_(rows(p.w_enc_nd));
  out.b_enc_l.copy_(rows(p.b_enc_n));
  if (c.jumps()) out.extra_l[0].copy_(rows(p.threshold_n()));
  if (c.gated()) out.extra_l[0].copy_(rows(p.r_mag_n()));
  if (c.gated()) out.extra_l[1].copy_(rows(p.b_mag_n()));
  out.b_dec_d.copy_(p.b_dec_d);
  // Gains and shifts that are neither 1 nor 0.
  draw_hidden(model, 7, out.hidden);
  for (size_t i = 0; i < out.hidden.size(); ++i)
    if (out.hidden[i].dim() == 1) out.hidden[i] += random(out.hidden[i].sizes(), 100 + i) * 0.2;
  return out;
}

// A training state on a mesh, one step before an update.
struct Bench {
  Mesh mesh;
  Problem problem;
  TrainState state;
  StepConfig config;
  DType stored = DType::f32;  // rows of the shards

  static constexpr int64_t kWindow = 1000;  // tokens after which a latent is dead

  Bench(const Case& c, const Problem& p, Communicator& world, const MeshConfig& shape)
      : mesh(make_mesh(world, shape)), problem(p) {
    state.dictionary = shard_of_fixed(c, p, mesh);
    state.var_total = p.var_total;
    config.optim.name = c.optimiser;
    config.exchange = c.exchange;
    reset_optimiser(mesh, optimiser_named(c.optimiser), false, state);
    state.tokens = kWindow;
    const Range own = state.dictionary.latents;
    state.tokens_since_fired_l.copy_(p.dead_n().narrow(0, own.begin, own.size()) * kWindow);
    config.optim.lr = 1e-3;
    config.optim.warmup_steps = 0;
    config.optim.decay_fraction = 0;
    config.optim.hidden_decay = 0;
    config.dead = {c.auxk_alpha, p.k_aux, kWindow};
    config.dead.preact_coefficient = c.preact;
    config.total_steps = 10;
  }

  MicroBatch micro(const Case& c, int64_t index) const {
    MicroBatch out;
    const int64_t width = problem.x_bd.size(1);
    const int64_t size = c.micro > 0 ? c.micro : c.batch, begin = index * size;
    out.micro = index;
    out.batch_rows = c.batch;
    out.rows = std::min(size, c.batch - begin);
    out.last_of_step = begin + out.rows == c.batch;
    out.part = row_part(out.rows, mesh.data_size(), mesh.feature_size(), mesh.data_index,
                        mesh.feature_index);
    out.dtype = stored;
    out.data = Bytes(static_cast<size_t>(out.part.slot * width) * size_of(stored));
    const int64_t owned = out.part.owned.size();
    const int64_t first = begin + out.part.row_range.begin + out.part.owned.begin;
    for (int64_t i = 0; i < owned; ++i) out.row_ids.push_back(first + i);
    if (owned > 0)
      at::from_blob(out.data.data(), {owned, width}, scalar_type_of(stored))
          .copy_(problem.x_bd.narrow(0, first, owned));
    return out;
  }

  GenericLoss oracle(const Case& c) const {
    Case whole = c;
    whole.micro = 0;
    const Rows rows = gather_rows(mesh, micro(whole, 0), problem.x_bd.size(1), {}, at::kCPU);
    GenericArgs args{state.var_total, c.batch,       c.relu() || c.gated() ? problem.l1 : 0.0,
                     c.auxk_alpha,    problem.k_aux, state.tokens_since_fired_l.ge(kWindow)};
    args.preact = c.preact;
    if (c.jumps()) args.l0 = state.dictionary.config.l0_coefficient;
    return generic_loss(mesh, state.dictionary, rows, args);
  }
};

// One step on the problem's rows.
inline StepResult step_of(Bench& bench, const Case& c, StepWorkspace& workspace) {
  int64_t index = 0;
  return train_step(
      bench.mesh, bench.config, [&] { return bench.micro(c, index++); }, false, bench.state,
      workspace);
}

// All D x F of a number of ranks.
inline std::vector<MeshConfig> meshes_of_ranks(int ranks) {
  std::vector<MeshConfig> out;
  for (int data = 1; data <= ranks; ++data)
    if (ranks % data == 0) out.push_back({.data = data, .feature = ranks / data});
  return out;
}

}  // namespace megadict
