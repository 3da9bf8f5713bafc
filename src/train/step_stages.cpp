#include "train/step_stages.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "base/clock.h"
#include "base/log.h"
#include "base/philox.h"
#include "model/activations.h"
#include "model/hidden.h"
#include "model/tensor_views.h"
#include "train/dead.h"
#include "train/schedule.h"
#include "train/update.h"

namespace megadict {

namespace {

constexpr uint32_t kCheckedRows = 4;  // of a micro-batch

void begin(Step& step) {
  const TrainState& state = step.state;
  step.one_pass = in_one_pass(step.mesh, step.config.optim, step.config.exchange);
  step.gated = activation_named(state.dictionary.config.activation).has_gates;
  const ModelConfig& model = state.dictionary.config;
  step.levels = levels_of(model, state.dictionary.n);
  step.sums.prefix_squares.assign(step.levels.size() - 1, 0);
  for (const at::Tensor& hidden : state.dictionary.hidden)
    step.hidden.push_back(at::zeros_like(hidden));
  step.work.fired_l.zero_();
  step.work.gradients.b_dec_d.zero_();
  const ActivationFn& activation = activation_named(model.activation);
  const double risen = ramp(state.step, step.config.l1_warmup_steps) / state.var_total;
  if (activation.has_l1) step.l1_weight = model.l1_coefficient * risen;
  if (activation.has_l0) step.l0_weight = model.l0_coefficient * risen;
  const DeadConfig& dead = step.config.dead;
  if (activation.has_l0)
    step.preact = make_preact(state, dead.preact_coefficient, dead.window_tokens, step.sums_as());
  if (step.preact.active()) step.terms.sums = 3;
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
  const CodePath path = path_of(part.of, dictionary, {0, dictionary.latents.size()});
  kernels_for(part.g_bd).row_gradients(
      {part.codes, part.xc_bd, part.g_bd, dictionary.w_dec_ld, part.l1, path}, gradients.rows);
  if (part.aux) add_auxk_gradients(dictionary, part.xc_bd, *part.aux, step.aux);
  if (step.preact.active()) add_fired(dictionary, step.preact, part, gradients.rows);
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
  OfLevel gate = {};  // gated: what the gates alone reconstruct
  // With layers in front: own rows as they are; dL/d of what the encoder saw, my latents' share.
  at::Tensor x_sd = {}, d_seen_bd = {};
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
                          {EncodeFor::training, step.screen(), check});
  if (has_front(step.state.dictionary.config))
    micro.x_sd = owned_slot(step.mesh, micro.rows.x_bd, micro.rows.part.slot).clone();
  micro.rows.x_bd.reset();
  step.seconds.encode += micro.fwd.encode_s;
  step.sums.l0 += micro.fwd.codes.nnz();
  step.least = micro.fwd.least;
  if (step.l1_weight > 0)
    step.sums.l1 += l1_sum(step.state.dictionary, step.gated ? micro.fwd.gates : micro.fwd.codes);
  mark_fired(micro.fwd.codes, step.work.fired_l);
}

void decode(Step& step, Micro& micro) {
  const Dictionary& dictionary = step.state.dictionary;
  for (const Level& level : step.levels)
    micro.levels.push_back({start_reconstruction(
        step.mesh, dictionary, micro.rows,
        codes_of_level(micro.fwd.codes, level, dictionary.latents), step.sums_as(), micro.fwd)});
  if (step.gated)
    micro.gate.decoding = start_reconstruction(step.mesh, dictionary, micro.rows, micro.fwd.gates,
                                               step.sums_as(), micro.fwd);
}

// Of each prefix, in place of the last one's: the reconstruction grows level by level.
std::vector<at::Tensor> residuals(Step& step, Micro& micro) {
  std::vector<at::Tensor> out;
  for (Micro::OfLevel& level : micro.levels) {
    finish_residual(step.state.dictionary, micro.rows, level.decoding, micro.fwd);
    out.push_back(micro.fwd.residual_sd);
  }
  step.seconds.decode += micro.fwd.decode_s;
  for (size_t p = 0; p + 1 < out.size(); ++p)
    step.sums.prefix_squares[p] += sum_of_squares(out[p]) / step.state.var_total;
  return out;
}

// The decoder and b_dec learn nothing from it.
void gate_residual(Step& step, Micro& micro) {
  Forward alone;
  alone.target_sd = micro.fwd.target_sd;
  finish_residual(step.state.dictionary, micro.rows, micro.gate.decoding, alone);
  step.seconds.decode += alone.decode_s;
  step.sums.gate_square += sum_of_squares(alone.residual_sd) / step.state.var_total;
  micro.gate.g = start_gather_from_owners(
      step.mesh, alone.residual_sd * (2.0 / step.state.var_total), "residual gradient");
}

// dL/d of what the decoder rows add up to, from dL/d x_hat of the own rows.
at::Tensor before_back(Step& step, const Micro& micro, const at::Tensor& g_own) {
  const Dictionary& dictionary = step.state.dictionary;
  if (!has_back(dictionary.config)) return g_own;
  return behind_backward(dictionary.config, dictionary.hidden, micro.fwd.decoded_sd, g_own,
                         step.hidden);
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
    micro.levels[p].g =
        start_gather_from_owners(step.mesh, before_back(step, micro, g_own), "residual gradient");
  }
  if (step.config.deterministic)
    step.g_own.push_back(g_own);
  else
    step.work.gradients.b_dec_d += g_own.sum(0, false, at::kDouble);
  if (step.gated) gate_residual(step, micro);
  if (step.preact.active()) {
    const at::Tensor own = owned_slot(step.mesh, micro.fwd.xc_bd, micro.rows.part.slot);
    add_to_preact(step.state.dictionary, own.narrow(0, 0, micro.rows.part.owned.size()),
                  micro.fwd.codes, step.preact, step.terms);
  }
}

// Adds what the entries of a part send to what the encoder saw.
void add_seen(const Step& step, const Codes& codes, const BatchPart& part, Micro& micro) {
  const Dictionary& dictionary = step.state.dictionary;
  if (!has_front(dictionary.config) || codes.nnz() == 0) return;
  const KernelSet& kernels = kernels_for(part.g_bd);
  const CodePath path = path_of(part.of, dictionary, {0, dictionary.latents.size()});
  Codes sent = codes;
  sent.value = kernels.products(codes, part.g_bd, dictionary.w_dec_ld);
  if (part.l1 != 0)
    sent.value += dictionary.w_dec_ld.norm(2, 1).index_select(0, codes.latent) * part.l1;
  if (path.gain_l.defined()) sent.value *= path.gain_l.index_select(0, codes.latent);
  const at::Tensor d_seen_bd = kernels.decode(sent, dictionary.w_enc_ld);
  micro.d_seen_bd = micro.d_seen_bd.defined() ? micro.d_seen_bd + d_seen_bd : d_seen_bd;
}

// The layers in front learn from all latents at once, each row at its owner.
void learn_in_front(Step& step, Micro& micro) {
  const Dictionary& dictionary = step.state.dictionary;
  if (!has_front(dictionary.config)) return;
  if (!micro.d_seen_bd.defined()) micro.d_seen_bd = at::zeros_like(micro.fwd.xc_bd);
  const at::Tensor d_seen_sd =
      sum_at_owners(step.mesh, micro.d_seen_bd, micro.rows.part.slot, "hidden gradient");
  in_front_backward(dictionary.config, dictionary.hidden, micro.x_sd, d_seen_sd, step.hidden);
}

// To the update in one pass, or into the gradient tensors.
void hand_on(Step& step, Micro& micro, Micro::OfLevel& level, BatchPart part, bool first) {
  part.xc_bd = micro.fwd.xc_bd;
  if (step.one_pass)
    level.part = tokens_to_owners(step.mesh, step.state, step.aux, std::move(part));
  else
    add_to_tensors(step, part, micro.batch.micro == 0 && first);
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
  const KernelSet& kernels = kernels_for(micro.fwd.xc_bd);
  const LatentCodes codes = kernels.by_latent(micro.fwd.codes);
  for (size_t p = 0; p < step.levels.size(); ++p) {
    const auto of_level = [&](const auto& all) {
      return codes_of_level(all, step.levels[p], dictionary.latents);
    };
    BatchPart part = p == 0 ? std::move(first) : BatchPart{.g_bd = micro.levels[p].g.wait()};
    part.codes = of_level(codes);
    part.of = step.gated ? PartOf::magnitudes : PartOf::codes;
    if (!step.gated) part.l1 = step.l1_weight;
    if (step.gated) add_magnitudes(dictionary, of_level(micro.fwd.codes), part.g_bd, step.terms);
    if (micro.fwd.edges.nnz() > 0)
      add_edges(dictionary, of_level(micro.fwd.edges), part.g_bd, step.terms);
    add_seen(step, of_level(micro.fwd.codes), part, micro);
    hand_on(step, micro, micro.levels[p], std::move(part), p == 0);
  }
  if (step.gated) {
    BatchPart part{.codes = kernels.by_latent(micro.fwd.gates),
                   .g_bd = micro.gate.g.wait(),
                   .l1 = step.l1_weight,
                   .of = PartOf::gates};
    add_seen(step, micro.fwd.gates, part, micro);
    hand_on(step, micro, micro.gate, std::move(part), false);
  }
  learn_in_front(step, micro);
}

void keep(Step& step, Micro& micro) {
  const Timer timer(step.seconds.update);
  if (!step.one_pass) return;
  at::Tensor xc_bd;
  const auto arrive = [&](Micro::OfLevel& level) {
    step.parts.push_back(level.part.wait());
    BatchPart& part = step.parts.back();
    if (!part.xc_bd.defined()) part.xc_bd = xc_bd;
    xc_bd = part.xc_bd;
  };
  for (Micro::OfLevel& level : micro.levels) arrive(level);
  if (step.gated) arrive(micro.gate);
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

}  // namespace

int64_t run_stages(Step& step) {
  begin(step);
  return step.config.overlap ? overlapped(step) : one_after_the_other(step);
}

}  // namespace megadict
