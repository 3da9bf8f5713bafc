#include "train/step.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <cmath>

#include "base/clock.h"
#include "base/log.h"
#include "model/activations.h"
#include "model/auxk.h"
#include "model/tensor_views.h"
#include "train/dead.h"
#include "train/exchange.h"
#include "train/schedule.h"
#include "train/step_sums.h"

namespace megadict {

namespace {

struct Step {
  const Mesh& mesh;
  const StepConfig& config;
  TrainState& state;
  StepWorkspace& work;
  AuxK aux;
  StepSums sums;
  double l1_weight = 0;  // L1 coefficient, warmed up, over var_total
};

void begin(Step& step) {
  const TrainState& state = step.state;
  const ModelConfig& model = state.dictionary.config;
  zero_gradients(step.work.gradients);
  step.work.fired_l.zero_();
  if (activation_named(model.activation).has_l1)
    step.l1_weight =
        model.l1_coefficient * ramp(state.step, step.config.l1_warmup_steps) / state.var_total;
  if (step.config.dead.auxk_alpha > 0 && state.tokens >= step.config.dead.window_tokens)
    step.aux = make_auxk(step.mesh, state.dictionary,
                         dead_mask(state, step.config.dead.window_tokens), step.config.dead.k_aux);
}

void name_bad_rows(const MicroBatch& micro, const at::Tensor& residual_sd, int64_t step) {
  const at::Tensor bad = residual_sd.isfinite().all(1).logical_not().to(at::kCPU);
  std::string rows;
  int named = 0;
  for (size_t i = 0; i < micro.row_ids.size() && named < 5; ++i)
    if (bad[static_cast<int64_t>(i)].item<bool>())
      rows += (named++ ? ", " : "") + std::to_string(micro.row_ids[i]);
  warn(fmt::format("step {}: the reconstruction is not finite for data rows {}{}", step, rows,
                   named == 5 ? ", ..." : ""));
}

void accumulate(Step& step, const MicroBatch& micro) {
  const Dictionary& dictionary = step.state.dictionary;
  const Rows rows = gather_rows(step.mesh, micro, dictionary.d, step.state.normalization,
                                dictionary.w_enc_ld.device());
  const Forward fwd = forward(step.mesh, dictionary, rows);
  const double square = sum_of_squares(fwd.residual_sd);
  if (!std::isfinite(square)) {
    step.sums.not_finite += 1;
    name_bad_rows(micro, fwd.residual_sd, step.state.step);
  }
  step.sums.square += square / step.state.var_total;
  step.sums.l0 += fwd.codes.nnz();
  if (step.l1_weight > 0) step.sums.l1 += l1_sum(dictionary, fwd.codes);
  mark_fired(fwd.codes, step.work.fired_l);
  const at::Tensor g_own = fwd.residual_sd * (2.0 / step.state.var_total);
  add_gradients(step.mesh, dictionary, fwd, g_own, step.l1_weight, step.work.gradients);
  if (step.aux.active()) add_auxk(step.mesh, dictionary, rows, fwd, step.aux);
}

// The denominator of AuxK is a sum over the whole batch, known only now. Returns the AuxK loss.
double finish_auxk(Step& step, int64_t batch_rows) {
  if (!step.aux.active()) return 0;
  double sums[2] = {step.aux.error, step.aux.target};
  step.mesh.world->all_reduce(view_of(sums, 2), ReduceOp::sum, "auxk sums");
  const DeadConfig& dead = step.config.dead;
  const double share =
      std::min(1.0, static_cast<double>(step.aux.n_dead) / static_cast<double>(dead.k_aux));
  const double weight = sums[1] > 0 ? dead.auxk_alpha * share / sums[1] : 0;
  merge_auxk(step.aux, weight * static_cast<double>(batch_rows), step.work.gradients);
  return weight * sums[0];
}

AdamArgs adam_args(const Step& step, double lr, double scale, bool unit_rows) {
  const OptimConfig& optim = step.config.optim;
  const auto t = static_cast<double>(step.state.step + 1);
  return {lr,
          optim.beta1,
          optim.beta2,
          optim.eps,
          1 - std::pow(optim.beta1, t),
          1 - std::pow(optim.beta2, t),
          scale,
          unit_rows};
}

// Updates the rows this rank owns; returns how many had a gradient that is not finite.
int64_t update_own_rows(Step& step, const RowGradients& own, double lr, double scale) {
  TrainState& state = step.state;
  Dictionary& dictionary = state.dictionary;
  const KernelSet& kernels = kernels_for(dictionary.w_enc_ld);
  const int64_t rows = state.own.size();
  const AdamArgs plain = adam_args(step, lr, scale, false);
  const auto mine = [&](const at::Tensor& t) { return t.narrow(0, state.own.begin, rows); };
  at::Tensor w_enc = mine(dictionary.w_enc_ld), b_enc = mine(dictionary.b_enc_l);
  int64_t skipped = kernels.adam_rows(w_enc, own.w_enc_ld.narrow(0, 0, rows), state.w_enc.m,
                                      state.w_enc.v, plain);
  skipped +=
      kernels.adam_rows(b_enc, own.b_enc_l.narrow(0, 0, rows), state.b_enc.m, state.b_enc.v, plain);
  if (!dictionary.tied()) {
    at::Tensor w_dec = mine(dictionary.w_dec_ld);
    skipped += kernels.adam_rows(w_dec, own.w_dec_ld.narrow(0, 0, rows), state.w_dec.m,
                                 state.w_dec.v, adam_args(step, lr, scale, true));
  }
  return skipped;
}

void update_b_dec(Step& step, const at::Tensor& gradient_d, double lr, double scale) {
  Dictionary& dictionary = step.state.dictionary;
  at::Tensor row = dictionary.b_dec_d.unsqueeze(0), m = step.state.b_dec.m.unsqueeze(0),
             v = step.state.b_dec.v.unsqueeze(0);
  const at::Tensor g = gradient_d.to(dictionary.b_dec_d.device()).unsqueeze(0);
  kernels_for(row).adam_rows(row, g, m, v, adam_args(step, lr, scale, false));
}

void update_ema(double decay, TrainState& state) {
  const double weight = 1 - decay;
  const auto mine = [&](const at::Tensor& t) {
    return t.narrow(0, state.own.begin, state.own.size());
  };
  state.ema_w_enc.lerp_(mine(state.dictionary.w_enc_ld), weight);
  if (!state.dictionary.tied()) state.ema_w_dec.lerp_(mine(state.dictionary.w_dec_ld), weight);
  state.ema_b_enc.lerp_(mine(state.dictionary.b_enc_l), weight);
  state.ema_b_dec.lerp_(state.dictionary.b_dec_d, weight);
}

StepResult result_of(const Step& step, const StepSums& total, int64_t rows, double aux_loss) {
  const auto b = static_cast<double>(rows);
  StepResult out;
  out.rows = rows;
  out.fvu = total.square / b;
  out.mse = out.fvu * step.state.var_total;
  out.aux_loss = aux_loss;
  out.l0 = static_cast<double>(total.l0) / b;
  out.l1 = total.l1 / b;
  out.l1_loss = step.l1_weight * out.l1;
  out.loss = out.fvu + out.aux_loss + out.l1_loss;
  out.finite = total.not_finite == 0 && std::isfinite(out.loss);
  out.stop = total.terminate > 0 ? StopRequest::terminate
             : total.requeue > 0 ? StopRequest::requeue
                                 : StopRequest::none;
  out.clock_s = total.clock_s;
  return out;
}

}  // namespace

StepWorkspace make_workspace(const TrainState& state) {
  return {make_gradients(state.dictionary, state.padded()),
          at::zeros({state.dictionary.latents.size()},
                    state.dictionary.b_enc_l.options().dtype(at::kBool)),
          {},
          {}};
}

StepResult train_step(const Mesh& mesh, const StepConfig& config, const MicroBatchSource& next,
                      bool want_norm, TrainState& state, StepWorkspace& workspace) {
  const c10::NoGradGuard no_grad;
  Step step{mesh, config, state, workspace, {}, {}, 0};
  begin(step);
  int64_t batch_rows = 0;
  for (bool last = false; !last;) {
    const MicroBatch micro = next();
    accumulate(step, micro);
    batch_rows = micro.batch_rows;
    last = micro.last_of_step;
  }
  const double aux_loss = finish_auxk(step, batch_rows);
  finish_b_dec(state.dictionary, workspace.gradients);

  const OptimConfig& optim = config.optim;
  const double lr = learning_rate(optim.lr, state.step, config.total_steps, optim.warmup_steps,
                                  optim.decay_fraction);
  workspace.own = sum_over_data(mesh, workspace.gradients.rows, state);
  double scale = 1, norm = -1;
  if (want_norm || optim.clip_norm > 0)
    norm = gradient_norm(mesh, state, workspace.own, workspace.gradients.b_dec_d) /
           static_cast<double>(batch_rows);
  if (optim.clip_norm > 0 && norm > optim.clip_norm) scale = optim.clip_norm / norm;
  const int64_t skipped = update_own_rows(step, workspace.own, lr, scale);
  share_rows(mesh, state);

  step.sums.not_finite += skipped;
  state.row_skipped = state.row_skipped || skipped > 0;
  step.sums.stop(stop_requested());
  if (mesh.world->rank() == 0) step.sums.clock_s = seconds_now();
  workspace.b_dec_d = all_reduce_sums(mesh, workspace.gradients.b_dec_d, step.sums);
  StepResult result = result_of(step, step.sums, batch_rows, aux_loss);
  result.lr = lr;
  result.grad_norm = norm;
  if (!result.finite) return result;
  update_b_dec(step, workspace.b_dec_d, lr, scale);
  if (optim.ema > 0) update_ema(optim.ema, state);
  count_fired(mesh, workspace.fired_l, batch_rows, state);
  state.step += 1;
  state.tokens += batch_rows;
  return result;
}

}  // namespace megadict
