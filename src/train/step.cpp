#include "train/step.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/clock.h"
#include "model/activations.h"
#include "model/hidden.h"
#include "train/dead.h"
#include "train/exact_b_dec.h"
#include "train/exchange.h"
#include "train/hidden_update.h"
#include "train/resample.h"
#include "train/schedule.h"
#include "train/step_stages.h"
#include "train/threshold.h"
#include "train/update.h"

namespace megadict {

namespace {

struct AuxResult {
  double loss = 0;
  double factor = 0;  // of the gradients that were taken without the denominator
};

// The denominator of AuxK is a sum over the whole batch, known only now.
AuxResult finish_auxk(Step& step, int64_t batch_rows) {
  if (!step.aux.active()) return {};
  const std::array<double, 2> sums = auxk_sums(step.mesh, step.aux, batch_rows);
  const DeadConfig& dead = step.config.dead;
  const double share =
      std::min(1.0, static_cast<double>(step.aux.n_dead) / static_cast<double>(dead.k_aux));
  const double weight = sums[1] > 0 ? dead.auxk_alpha * share / sums[1] : 0;
  return {weight * sums[0], weight * static_cast<double>(batch_rows)};
}

// The gradients of what the activation learns of each latent. The L0 target is compared with the
// whole batch's L0. Collective over data, with a target or exact sums over world.
void finish_extra(Step& step, int64_t batch_rows) {
  const ModelConfig& model = step.state.dictionary.config;
  double l0 = 0;
  ThresholdPull pull{.preact = step.preact.weight, .norm_l = step.preact.norm_l};
  if (step.l0_weight > 0 && model.l0_target > 0) {
    int64_t codes = step.sums.l0;
    step.mesh.world->all_reduce(view_of(&codes, 1), ReduceOp::sum, "batch l0");
    l0 = static_cast<double>(codes) / static_cast<double>(batch_rows);
  }
  if (step.l0_weight > 0) pull.l0_slope = l0_penalty(model, step.l0_weight, l0).slope;
  step.extra = extra_gradients(step.mesh, step.state, step.terms, pull, batch_rows, step.sums_as());
}

// Of what is not in the latents' rows; that of the hidden layers is every rank's.
double other_squares(const Step& step) {
  double square = step.mesh.world->rank() == 0 ? step.hidden_square : 0;
  for (const at::Tensor& gradient : step.extra) square += sum_of_squares(gradient);
  return square;
}

struct Updated {
  int64_t skipped = 0;
  double norm = -1;  // of the mean gradient
  double scale = 1;  // by clipping
};

// Both return the norm where it is wanted. Collective over the mesh.
Updated one_pass(Step& step, double aux_factor, double lr, int64_t batch_rows, bool want_norm) {
  at::Tensor& b_dec_d = step.work.gradients.b_dec_d;
  UpdateArgs args = update_args(step.config.optim, lr, step.state.step + 1);
  ExactBDec exact;
  if (step.config.deterministic) {
    exact = bound_b_dec(step.mesh, step.state, step.g_own, step.parts, aux_factor, step.preact,
                        batch_rows);
    args.b_dec_up = exact.of_latents.up;
    if (!exact.finite) step.sums.not_finite += 1;
  }
  const PreactSources preact(step.preact, step.state.own, batch_rows, step.parts);
  const UpdateResult result = update_in_one_pass(step.parts, step.aux, aux_factor, preact.sources,
                                                 args, step.screen(), step.state);
  if (step.config.deterministic)
    b_dec_d += sum_b_dec(step.mesh, exact, step.g_own, result.b_dec_d);
  else if (!has_front(step.state.dictionary.config))
    b_dec_d += result.b_dec_d.to(b_dec_d.device());
  share_updates(step.mesh, step.config.optim, step.aux, step.parts, preact.sources, step.screen(),
                step.state);
  Updated out{result.skipped};
  if (want_norm)
    out.norm = gradient_norm(step.mesh, result.square + other_squares(step), b_dec_d) /
               static_cast<double>(batch_rows);
  return out;
}

Updated by_tensors(Step& step, double aux_factor, double lr, int64_t batch_rows, bool want_norm) {
  TrainState& state = step.state;
  Gradients& gradients = step.work.gradients;
  if (step.aux.active()) merge_auxk(step.aux, aux_factor, gradients);
  if (step.preact.active() && step.mesh.data_index == 0)
    add_all_rows(state.dictionary, step.preact, batch_rows, gradients.rows);
  finish_b_dec(state.dictionary, gradients);
  const RowGradients own = sum_over_data(step.mesh, gradients.rows, state);
  const OptimConfig& optim = step.config.optim;
  Updated out;
  if (want_norm || optim.clip_norm > 0) {
    double square =
        sum_of_squares(own.w_enc_ld) + sum_of_squares(own.b_enc_l) + other_squares(step);
    if (!state.dictionary.tied()) square += sum_of_squares(own.w_dec_ld);
    out.norm =
        gradient_norm(step.mesh, square, gradients.b_dec_d) / static_cast<double>(batch_rows);
  }
  if (optim.clip_norm > 0 && out.norm > optim.clip_norm) out.scale = optim.clip_norm / out.norm;
  const UpdateArgs args = update_args(optim, lr, state.step + 1, out.scale);
  out.skipped = update_by_tensors(own, args, state).skipped;
  share_rows(step.mesh, state);
  if (step.work.screen) step.work.screen->refresh(state.dictionary.w_enc_ld);
  return out;
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
  for (size_t i = 0; i < state.ema_extra.size(); ++i)
    state.ema_extra[i].lerp_(mine(state.dictionary.extra_l[i]), weight);
  for (size_t i = 0; i < state.ema_hidden.size(); ++i)
    state.ema_hidden[i].lerp_(state.dictionary.hidden[i], weight);
}

StepResult result_of(const Step& step, const StepSums& total, int64_t rows, double aux_loss) {
  const auto b = static_cast<double>(rows);
  StepResult out;
  out.rows = rows;
  out.fvu = total.square / b;
  out.mse = out.fvu * step.state.var_total;
  double reconstruction = out.fvu * step.levels.back().weight;
  for (size_t p = 0; p < total.prefix_squares.size(); ++p) {
    out.prefix_fvu.push_back(total.prefix_squares[p] / b);
    reconstruction += out.prefix_fvu[p] * step.levels[p].weight;
  }
  if (!out.prefix_fvu.empty()) out.prefix_fvu.push_back(out.fvu);
  out.aux_loss = aux_loss;
  out.l0 = static_cast<double>(total.l0) / b;
  out.l1 = total.l1 / b;
  out.l1_loss = step.l1_weight * out.l1;
  out.gate_loss = total.gate_square / b;
  out.preact_loss = total.preact / b;
  if (step.l0_weight > 0)
    out.l0_loss = l0_penalty(step.state.dictionary.config, step.l0_weight, out.l0).loss;
  out.loss =
      reconstruction + out.aux_loss + out.l1_loss + out.l0_loss + out.gate_loss + out.preact_loss;
  out.finite = total.not_finite == 0 && std::isfinite(out.loss);
  out.stop = total.terminate > 0 ? StopRequest::terminate
             : total.requeue > 0 ? StopRequest::requeue
                                 : StopRequest::none;
  out.clock_s = total.clock_s;
  return out;
}

}  // namespace

StepWorkspace make_workspace(const TrainState& state, const std::string& encode) {
  const auto options = state.dictionary.b_enc_l.options();
  StepWorkspace work{{{}, at::zeros({state.dictionary.d}, options.dtype(at::kDouble))},
                     at::zeros({state.dictionary.latents.size()}, options.dtype(at::kBool)),
                     {},
                     {}};
  if (const ScreenProduct* product = screen_named(encode)) {
    work.screen.emplace(state.dictionary.w_enc_ld, product->kind);
    work.screen->remember(state.screen);
  }
  return work;
}

StepResult train_step(const Mesh& mesh, const StepConfig& config, const MicroBatchSource& next,
                      bool want_norm, TrainState& state, StepWorkspace& workspace) {
  const c10::NoGradGuard no_grad;
  const double begin_s = seconds_now();
  Step step{mesh, config, state, workspace, next};
  const int64_t batch_rows = run_stages(step);
  const AuxResult aux = finish_auxk(step, batch_rows);
  finish_extra(step, batch_rows);
  if (step.preact.active())
    step.sums.preact = finish_preact(mesh, state.dictionary, batch_rows, step.preact);
  const OptimConfig& optim = config.optim;
  const double lr = learning_rate(optim.lr, state.step, config.total_steps, optim.warmup_steps,
                                  optim.decay_fraction) *
                    since_resampling(config.dead, state);
  step.hidden_square = sum_hidden(mesh, step.hidden);
  decay_decoder_rows(optim, lr, state);
  const auto update = step.one_pass ? one_pass : by_tensors;
  Updated updated;
  {
    const Timer timer(step.seconds.update);
    updated = update(step, aux.factor, lr, batch_rows, want_norm);
    updated.skipped += update_extra(mesh, step.extra,
                                    update_args(optim, lr, state.step + 1, updated.scale), state);
  }

  step.sums.not_finite += static_cast<double>(updated.skipped);
  if (!std::isfinite(step.hidden_square)) step.sums.not_finite += 1;
  state.row_skipped = state.row_skipped || updated.skipped > 0;
  step.sums.stop(stop_requested());
  if (mesh.world->rank() == 0) step.sums.clock_s = seconds_now();
  workspace.b_dec_d = all_reduce_sums(mesh, workspace.gradients.b_dec_d, step.sums);
  StepResult result = result_of(step, step.sums, batch_rows, aux.loss);
  result.lr = lr;
  result.grad_norm = updated.norm;
  if (workspace.screen) {
    result.screen = workspace.screen->take_stats();
    state.screen = workspace.screen->memory();
  }
  if (!result.finite) return result;
  update_b_dec(workspace.b_dec_d, update_args(optim, lr, state.step + 1, updated.scale), state);
  update_hidden(step.hidden, optim, update_args(optim, lr, state.step + 1, updated.scale), state);
  if (optim.ema > 0) update_ema(optim.ema, state);
  update_threshold(step.least, state);
  state.judged_threshold = 0;
  count_fired(mesh, workspace.fired_l, batch_rows, state);
  state.step += 1;
  state.tokens += batch_rows;
  result.seconds = step.seconds;
  result.seconds.step = seconds_now() - begin_s;
  return result;
}

}  // namespace megadict
