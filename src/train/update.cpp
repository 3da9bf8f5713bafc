#include "train/update.h"

#include <ATen/ATen.h>

namespace megadict {

bool fits_one_pass(const Mesh& mesh, const OptimConfig& optim, bool whole_batch) {
  return mesh.data_size() == 1 && whole_batch && optim.clip_norm == 0;
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

UpdateResult update_in_one_pass(const BatchGradients& batch, const AuxK& aux, double aux_factor,
                                const UpdateArgs& args, Screen* screen, TrainState& state,
                                at::Tensor& b_dec_d) {
  const KernelSet& kernels = kernels_for(batch.g_bd);
  const LatentCodes codes = kernels.by_latent(batch.fwd.codes);
  std::vector<GradientSource> sources = {{codes, batch.fwd.xc_bd, batch.g_bd, 1, batch.l1}};
  if (batch.aux && aux_factor > 0)
    sources.push_back(
        {batch.aux->codes, batch.fwd.xc_bd, batch.aux->g_bd, aux_factor, 0, aux.dead_l});
  LatentRows rows = own_latents(state);
  rows.screen = screen;
  UpdateArgs with_unit = args;
  with_unit.unit_rows = !rows.tied();
  const RowPassResult result = kernels.row_pass(sources, rows, with_unit);
  b_dec_d += result.b_dec_d.to(b_dec_d.device());
  return {result.skipped, result.square};
}

namespace {

// Steps without gradient since a row's last update; -1 where this step has none either.
at::Tensor skipped_steps(const RowGradients& own, int64_t step, TrainState& state) {
  const int64_t rows = state.own.size();
  at::Tensor touched = own.b_enc_l.narrow(0, 0, rows).ne(0);
  for (const at::Tensor& g : {own.w_enc_ld, own.w_dec_ld})
    touched = touched.logical_or(g.narrow(0, 0, rows).ne(0).any(1));
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
  if (!rows.tied()) out.skipped += update(rows.w_dec, own.w_dec_ld, true);
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
