#include "train/update.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/parallel_guard.h"
#include "train/exchange.h"

namespace megadict {

bool in_one_pass(const Mesh& mesh, const OptimConfig& optim, const std::string& exchange) {
  return optim.clip_norm == 0 && (mesh.data_size() == 1 || exchange == "tokens");
}

UpdateArgs update_args(const OptimConfig& optim, double lr, int64_t step, double scale) {
  return {optimiser_named(optim.name).kind,
          lr,
          optim.beta1,
          optim.beta2,
          optim.eps,
          step,
          scale,
          false};
}

UpdateResult update_in_one_pass(std::span<const BatchPart> parts, const AuxK& aux,
                                double aux_factor, std::span<const GradientSource> more,
                                const UpdateArgs& args, Screen* screen, TrainState& state) {
  std::vector<GradientSource> sources;
  at::Tensor dead;
  for (const BatchPart& part : parts)
    sources.push_back({part.codes,
                       part.xc_bd,
                       part.g_bd,
                       1,
                       part.l1,
                       {},
                       path_of(part.of, state.dictionary, state.own)});
  if (aux.active() && aux_factor > 0) {
    dead = own_dead(state, aux);
    for (const BatchPart& part : parts)
      if (part.aux)
        sources.push_back({part.aux->codes, part.xc_bd, part.aux->g_bd, aux_factor, 0, dead});
  }
  for (const GradientSource& source : more) sources.push_back(source);
  LatentRows rows = own_latents(state);
  rows.screen = screen;
  rows.first = state.own.begin;
  UpdateArgs with_unit = args;
  with_unit.unit_rows = state.dictionary.unit_rows();
  const RowPassResult result = kernels_for(rows.w_enc.w).row_pass(sources, rows, with_unit);
  return {result.skipped, result.square, result.b_dec_d};
}

void share_updates(const Mesh& mesh, const OptimConfig& optim, const AuxK& aux,
                   std::span<const BatchPart> parts, std::span<const GradientSource> more,
                   Screen* screen, TrainState& state) {
  if (mesh.data_size() == 1) return;
  const at::Tensor& w_enc = state.dictionary.w_enc_ld;
  if (!optimiser_named(optim.name).lazy) {
    share_rows(mesh, state);
    if (screen != nullptr) screen->refresh(w_enc);
    return;
  }
  at::Tensor touched = touched_rows(state, aux, parts);
  for (const GradientSource& source : more)
    touched.logical_or_(source.codes.latent_start.diff().gt(0));
  const at::Tensor arrived = share_touched_rows(mesh, touched, state).to(at::kCPU);
  if (screen == nullptr) return;
  const auto* latent = arrived.const_data_ptr<int64_t>();
  const auto* w = w_enc.const_data_ptr<float>();
  ParallelGuard guard;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < arrived.size(0); ++i)
    guard.run([&] { screen->refresh(latent[i], w + latent[i] * w_enc.size(1)); });
  guard.rethrow();
}

namespace {

// Which of the first rows hold anything but zeros; in blocks, since a mask would be a quarter of g.
at::Tensor rows_with_values(const at::Tensor& g, int64_t rows) {
  constexpr int64_t kBlock = 1024;
  at::Tensor out = at::empty({rows}, g.options().dtype(at::kBool));
  for (int64_t begin = 0; begin < rows; begin += kBlock) {
    const int64_t count = std::min(kBlock, rows - begin);
    out.narrow(0, begin, count).copy_(g.narrow(0, begin, count).ne(0).any(1));
  }
  return out;
}

// Steps without gradient since a row's last update; -1 where this step has none either.
at::Tensor skipped_steps(const RowGradients& own, int64_t step, TrainState& state) {
  const int64_t rows = state.own.size();
  at::Tensor touched = own.b_enc_l.narrow(0, 0, rows).ne(0);
  for (const at::Tensor& g : {own.w_enc_ld, own.w_dec_ld})
    touched.logical_or_(rows_with_values(g, rows));
  const at::Tensor skipped =
      at::where(touched, step - 1 - state.last_step_l, at::full_like(state.last_step_l, -1));
  state.last_step_l.masked_fill_(touched, step);
  return skipped;
}

}  // namespace

UpdateResult update_by_tensors(const RowGradients& own, const UpdateArgs& args, TrainState& state) {
  LatentRows rows = own_latents(state);
  const KernelSet& kernels = kernels_for(rows.w_enc.w);
  const at::Tensor skipped =
      state.last_step_l.defined() ? skipped_steps(own, args.step, state) : at::Tensor();
  const auto update = [&](Parameter& parameter, const at::Tensor& g, bool unit_rows) {
    UpdateArgs its = args;
    its.unit_rows = unit_rows;
    return kernels.update_rows(parameter, g.narrow(0, 0, state.own.size()), skipped, its);
  };
  UpdateResult out;
  out.skipped = update(rows.w_enc, own.w_enc_ld, false) + update(rows.b_enc, own.b_enc_l, false);
  if (!rows.tied()) out.skipped += update(rows.w_dec, own.w_dec_ld, state.dictionary.unit_rows());
  return out;
}

void update_b_dec(const at::Tensor& gradient_d, const UpdateArgs& args, TrainState& state) {
  const auto as_row = [](const at::Tensor& t) { return t.defined() ? t.unsqueeze(0) : t; };
  Parameter row{state.dictionary.b_dec_d.unsqueeze(0), as_row(state.b_dec.m),
                as_row(state.b_dec.v)};
  const at::Tensor g = gradient_d.to(row.w.device()).unsqueeze(0);
  kernels_for(row.w).update_rows(row, g, {}, args);
}

}  // namespace megadict
