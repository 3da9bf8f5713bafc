#include "train/step.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <optional>

#include "base/clock.h"
#include "base/log.h"
#include "base/philox.h"
#include "model/activations.h"
#include "model/auxk.h"
#include "model/matryoshka.h"
#include "model/tensor_views.h"
#include "train/dead.h"
#include "train/exact_b_dec.h"
#include "train/exchange.h"
#include "train/latent_parameters.h"
#include "train/resample.h"
#include "train/schedule.h"
#include "train/step_sums.h"
#include "train/threshold.h"
#include "train/update.h"

namespace megadict {

namespace {

constexpr uint32_t kCheckedRows = 4;  // of a micro-batch

struct Step {
  const Mesh& mesh;
  const StepConfig& config;
  TrainState& state;
  StepWorkspace& work;
  const MicroBatchSource& next;
  AuxK aux = {};
  StepSums sums = {};
  StageSeconds seconds = {};
  std::vector<Level> levels = {};
  double l1_weight = 0;  // L1 coefficient, warmed up, over var_total
  double l0_weight = 0;  // L0 coefficient, likewise
  Edges edges = {};
  std::vector<at::Tensor> extra = {};  // gradients of Dictionary::extra_l, own rows
  bool one_pass = true;
  std::vector<BatchPart> parts = {};   // of an update in one pass
  std::vector<at::Tensor> g_own = {};  // of my own rows, for exact sums
  Sums sums_as() const { return config.deterministic ? Sums::exact : Sums::fast; }
  double least = 0;  // smallest code of the batch, where it was asked for
};

void begin(Step& step) {
  const TrainState& state = step.state;
  step.one_pass = in_one_pass(step.mesh, step.config.optim, step.config.exchange);
  const ModelConfig& model = state.dictionary.config;
  step.levels = levels_of(model, state.dictionary.n);
  step.sums.prefix_squares.assign(step.levels.size() - 1, 0);
  step.work.fired_l.zero_();
  step.work.gradients.b_dec_d.zero_();
  const ActivationFn& activation = activation_named(model.activation);
  const double risen = ramp(state.step, step.config.l1_warmup_steps) / state.var_total;
  if (activation.has_l1) step.l1_weight = model.l1_coefficient * risen;
  if (activation.has_l0) step.l0_weight = model.l0_coefficient * risen;
  const DeadConfig& dead = step.config.dead;
  if (dead.auxk_alpha > 0 && state.step % dead.auxk_every == 0 &&
      state.tokens >= dead.window_tokens)
    step.aux = make_auxk(step.mesh, dead_mask(state, dead.window_tokens), dead.k_aux,
                         step.sums_as(), {dead.auxk_stratum, step.config.seed, state.step});
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

// Gradient tensors, where there is no one pass.
void add_to_tensors(Step& step, const BatchPart& part, bool first) {
  const Dictionary& dictionary = step.state.dictionary;
  Gradients& gradients = step.work.gradients;
  if (!gradients.rows.w_enc_ld.defined())
    gradients.rows = make_row_gradients(dictionary, step.state.padded());
  else if (first)
    zero_gradients(gradients.rows);
  kernels_for(part.g_bd).row_gradients(
      {part.codes, part.xc_bd, part.g_bd, dictionary.w_dec_ld, part.l1}, gradients.rows);
  if (part.aux) add_auxk_gradients(dictionary, part.xc_bd, *part.aux, step.aux);
}

Screen* screen_of(Step& step) {
  return step.work.screen ? &*step.work.screen : nullptr;
}

// Rows of a micro-batch that the screen is compared on with the exact result.
std::vector<int64_t> rows_to_check(const Step& step, const Rows& rows, int64_t micro) {
  std::vector<int64_t> check;
  const Rng rng{.purpose = Purpose::screen_check, .step = static_cast<uint64_t>(step.state.step)};
  if (step.work.screen && rows.real_rows() > 0)
    for (uint32_t i = 0; i < kCheckedRows; ++i)
      check.push_back(static_cast<int64_t>(rng.bits64(static_cast<uint64_t>(micro), i) %
                                           static_cast<uint64_t>(rows.real_rows())));
  std::sort(check.begin(), check.end());
  check.erase(std::unique(check.begin(), check.end()), check.end());
  return check;
}

// A micro-batch on its way through the stages below.
struct Micro {
  MicroBatch batch = {};
  Arriving raw = {};
  Rows rows = {};
  Forward fwd = {};
  struct OfLevel {
    Decoding decoding = {};
    Arriving g = {};
    ArrivingPart part = {};
  };
  std::vector<OfLevel> levels = {};
};

void start_rows(Step& step, Micro& micro) {
  {
    const Timer timer(step.seconds.wait);
    micro.batch = step.next();
  }
  const Timer timer(step.seconds.rows);
  const Dictionary& dictionary = step.state.dictionary;
  micro.raw = start_gather_rows(step.mesh, micro.batch, dictionary.d, dictionary.w_enc_ld.device());
}

void encode(Step& step, Micro& micro) {
  {
    const Timer timer(step.seconds.rows);
    micro.rows = finish_rows(step.mesh, micro.batch, micro.raw.wait(), step.state.normalization);
    micro.batch.data = Bytes();
  }
  const auto check = rows_to_check(step, micro.rows, micro.batch.micro);
  micro.fwd = encode_rows(step.mesh, step.state.dictionary, micro.rows,
                          {EncodeFor::training, screen_of(step), check});
  micro.rows.x_bd.reset();
  step.seconds.encode += micro.fwd.encode_s;
  step.sums.l0 += micro.fwd.codes.nnz();
  step.least = micro.fwd.least;
  if (step.l1_weight > 0) step.sums.l1 += l1_sum(step.state.dictionary, micro.fwd.codes);
  mark_fired(micro.fwd.codes, step.work.fired_l);
}

void decode(Step& step, Micro& micro) {
  const Dictionary& dictionary = step.state.dictionary;
  for (const Level& level : step.levels)
    micro.levels.push_back({start_reconstruction(
        step.mesh, dictionary, micro.rows,
        codes_of_level(micro.fwd.codes, level, dictionary.latents), step.sums_as(), micro.fwd)});
}

// Of each prefix, in place of the last one's: the reconstruction grows level by level.
std::vector<at::Tensor> residuals(Step& step, Micro& micro) {
  std::vector<at::Tensor> out;
  for (Micro::OfLevel& level : micro.levels) {
    finish_residual(step.mesh, micro.rows, level.decoding, micro.fwd);
    out.push_back(micro.fwd.residual_sd);
  }
  step.seconds.decode += micro.fwd.decode_s;
  for (size_t p = 0; p + 1 < out.size(); ++p)
    step.sums.prefix_squares[p] += sum_of_squares(out[p]) / step.state.var_total;
  return out;
}

void residual(Step& step, Micro& micro) {
  const std::vector<at::Tensor> of_prefix = residuals(step, micro);
  const at::Tensor& residual_sd = micro.fwd.residual_sd;
  const double square = sum_of_squares(residual_sd);
  if (!std::isfinite(square)) {
    step.sums.not_finite += 1;
    name_bad_rows(micro.batch, residual_sd, step.state.step);
  }
  step.sums.square += square / step.state.var_total;
  // A level's gradient is that of all prefixes it is in; b_dec is in all of them.
  at::Tensor g_own;
  for (size_t p = of_prefix.size(); p-- > 0;) {
    const at::Tensor g = of_prefix[p] * (2.0 / step.state.var_total * step.levels[p].weight);
    g_own = g_own.defined() ? g_own + g : g;
    micro.levels[p].g = start_gather_from_owners(step.mesh, g_own, "residual gradient");
  }
  if (step.config.deterministic)
    step.g_own.push_back(g_own);
  else
    step.work.gradients.b_dec_d += g_own.sum(0, false, at::kDouble);
}

void share(Step& step, Micro& micro) {
  const Dictionary& dictionary = step.state.dictionary;
  BatchPart first{.raw_bd = micro.rows.raw_bd};
  first.g_bd = micro.levels[0].g.wait();
  if (step.aux.active()) {
    const Timer timer(step.seconds.auxk);
    first.aux = auxk_forward(step.mesh, dictionary, micro.rows, micro.fwd, step.aux);
  }
  const Timer timer(step.seconds.update);
  const LatentCodes codes = kernels_for(micro.fwd.xc_bd).by_latent(micro.fwd.codes);
  for (size_t p = 0; p < step.levels.size(); ++p) {
    BatchPart part = p == 0 ? std::move(first) : BatchPart{.g_bd = micro.levels[p].g.wait()};
    part.codes = codes_of_level(codes, step.levels[p], dictionary.latents);
    part.xc_bd = micro.fwd.xc_bd;
    part.l1 = step.l1_weight;
    if (micro.fwd.edges.nnz() > 0)
      add_edges(dictionary, codes_of_level(micro.fwd.edges, step.levels[p], dictionary.latents),
                part.g_bd, step.edges);
    if (step.one_pass)
      micro.levels[p].part = tokens_to_owners(step.mesh, step.state, step.aux, std::move(part));
    else
      add_to_tensors(step, part, micro.batch.micro == 0 && p == 0);
  }
}

void keep(Step& step, Micro& micro) {
  const Timer timer(step.seconds.update);
  if (!step.one_pass) return;
  at::Tensor xc_bd;
  for (Micro::OfLevel& level : micro.levels) {
    step.parts.push_back(level.part.wait());
    BatchPart& part = step.parts.back();
    if (!part.xc_bd.defined()) part.xc_bd = xc_bd;
    xc_bd = part.xc_bd;
  }
}

// Each stage meets the micro-batches in their order, so sums have the same bits either way.
// Returns the rows of the batch.
int64_t one_after_the_other(Step& step) {
  for (;;) {
    Micro micro;
    start_rows(step, micro);
    const MicroBatch& batch = micro.batch;
    const bool last = batch.last_of_step;
    const int64_t rows = batch.batch_rows;
    for (const auto stage : {encode, decode, residual, share, keep}) stage(step, micro);
    if (last) return rows;
  }
}

// While a micro-batch is encoded, the rows of the one after it and the exchanges of three before it
// are under way: each stage waits for what another started before the encode.
int64_t overlapped(Step& step) {
  std::deque<Micro> all;
  size_t done = 0;  // that were before the first of them
  int64_t rows = 0;
  for (size_t tick = 0, end = 1; tick < end; ++tick) {
    if (rows == 0) {
      start_rows(step, all.emplace_back());
      end = tick + 5;
      if (all.back().batch.last_of_step) rows = all.back().batch.batch_rows;
    }
    const auto run = [&](size_t behind, auto stage) {
      if (tick >= behind && tick - behind - done < all.size())
        stage(step, all[tick - behind - done]);
    };
    run(1, encode);
    run(4, keep);
    if (tick >= 4) {
      all.pop_front();
      ++done;
    }
    run(3, share);
    run(2, residual);
    run(1, decode);
  }
  return rows;
}

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
  double l0 = 0, slope = 0;
  if (step.l0_weight > 0 && model.l0_target > 0) {
    int64_t codes = step.sums.l0;
    step.mesh.world->all_reduce(view_of(&codes, 1), ReduceOp::sum, "batch l0");
    l0 = static_cast<double>(codes) / static_cast<double>(batch_rows);
  }
  if (step.l0_weight > 0) slope = l0_penalty(model, step.l0_weight, l0).slope;
  step.extra =
      extra_gradients(step.mesh, step.state, step.edges, slope, batch_rows, step.sums_as());
}

double extra_square(const Step& step) {
  double square = 0;
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
    exact = bound_b_dec(step.mesh, step.state, step.g_own, step.parts, aux_factor, batch_rows);
    args.b_dec_up = exact.of_latents.up;
    if (!exact.finite) step.sums.not_finite += 1;
  }
  const UpdateResult result =
      update_in_one_pass(step.parts, step.aux, aux_factor, args, screen_of(step), step.state);
  if (step.config.deterministic)
    b_dec_d += sum_b_dec(step.mesh, exact, step.g_own, result.b_dec_d);
  else
    b_dec_d += result.b_dec_d.to(b_dec_d.device());
  share_updates(step.mesh, step.config.optim, step.aux, step.parts, screen_of(step), step.state);
  Updated out{result.skipped};
  if (want_norm)
    out.norm = gradient_norm(step.mesh, result.square + extra_square(step), b_dec_d) /
               static_cast<double>(batch_rows);
  return out;
}

Updated by_tensors(Step& step, double aux_factor, double lr, int64_t batch_rows, bool want_norm) {
  TrainState& state = step.state;
  Gradients& gradients = step.work.gradients;
  if (step.aux.active()) merge_auxk(step.aux, aux_factor, gradients);
  finish_b_dec(state.dictionary, gradients);
  const RowGradients own = sum_over_data(step.mesh, gradients.rows, state);
  const OptimConfig& optim = step.config.optim;
  Updated out;
  if (want_norm || optim.clip_norm > 0) {
    double square = sum_of_squares(own.w_enc_ld) + sum_of_squares(own.b_enc_l) + extra_square(step);
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
  if (step.l0_weight > 0)
    out.l0_loss = l0_penalty(step.state.dictionary.config, step.l0_weight, out.l0).loss;
  out.loss = reconstruction + out.aux_loss + out.l1_loss + out.l0_loss;
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
  begin(step);
  const int64_t batch_rows = config.overlap ? overlapped(step) : one_after_the_other(step);
  const AuxResult aux = finish_auxk(step, batch_rows);
  finish_extra(step, batch_rows);
  const OptimConfig& optim = config.optim;
  const double lr = learning_rate(optim.lr, state.step, config.total_steps, optim.warmup_steps,
                                  optim.decay_fraction) *
                    since_resampling(config.dead, state);
  const auto update = step.one_pass ? one_pass : by_tensors;
  Updated updated;
  {
    const Timer timer(step.seconds.update);
    updated = update(step, aux.factor, lr, batch_rows, want_norm);
    updated.skipped += update_extra(mesh, step.extra,
                                    update_args(optim, lr, state.step + 1, updated.scale), state);
  }

  step.sums.not_finite += static_cast<double>(updated.skipped);
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
