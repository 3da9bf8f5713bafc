#include "train/start.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <limits>

#include "base/error.h"
#include "base/log.h"
#include "comm/agree.h"
#include "data/batch_stream.h"
#include "data/normalization.h"
#include "model/activations.h"
#include "model/formats.h"
#include "model/forward.h"
#include "model/hidden.h"
#include "model/initialise.h"
#include "model/saved.h"

namespace megadict {

namespace {

constexpr double kGammaWarning = 2.0;

struct Sample {
  at::Tensor rows_md;  // normalised
  SampleStatistics facts;
};

Sample read_sample(const TrainJob& job) {
  const std::vector<int64_t> ids = job.plan->sample(kSampleRows);
  const auto rows = static_cast<int64_t>(ids.size()), d = job.data->width();
  at::Tensor raw = at::empty({rows, d}, at::kFloat);
  read_rows(*job.data, ids, raw.mutable_data_ptr<float>());
  Sample out;
  out.facts = measure_sample(job.data_config, raw.const_data_ptr<float>(), rows, d);
  out.rows_md = normalized(raw, out.facts.normalization);
  return out;
}

void report(const Sample& sample) {
  const SampleStatistics& facts = sample.facts;
  say(fmt::format("sample of {} rows: mean norm {:.4g}, |mean|/std {:.3g}, scale {:.4g}",
                  sample.rows_md.size(0), facts.mean_norm, facts.gamma, facts.normalization.scale));
  if (facts.gamma > kGammaWarning && facts.normalization.mean.empty())
    note(
        fmt::format("note: the mean row is {:.1f} times as long as the rows' spread; many latents "
                    "may die. hint: --data.center true",
                    facts.gamma));
}

// A threshold moves by factors where its logarithm is trained: from 0 it would never.
void refuse_still_thresholds(const Mesh& mesh, const Dictionary& dictionary, int64_t latents,
                             const std::string& folder) {
  if (!dictionary.config.jumprelu_log) return;
  constexpr float kLeast = std::numeric_limits<float>::min();
  int64_t still = (dictionary.extra_l[0].narrow(0, 0, latents) < kLeast).sum().item<int64_t>();
  mesh.feature->all_reduce(view_of(&still, 1), ReduceOp::sum, "thresholds of 0");
  if (still > 0)
    fail_agreed(ExitCode::usage,
                fmt::format("model.jumprelu_log: {} thresholds of '{}' are 0 and could never move",
                            still, folder),
                "model.jumprelu_log = false");
}

Dictionary from_another(const Mesh& mesh, const TrainJob& job, Range latents, int64_t padded,
                        TrainState& state) {
  const std::string& folder = job.model.init_from;
  SavedDictionary saved;
  agree(*mesh.world,
        [&] { saved = load_saved(folder, "last", mesh.feature_size(), mesh.feature_index); });
  const Dictionary& from = saved.dictionary;
  const auto differs = [&](const char* what, const auto& there, const auto& here) {
    if (there != here)
      fail_agreed(ExitCode::usage, fmt::format("model.init_from '{}' has {} {}, this run {}",
                                               folder, what, there, here));
  };
  differs("d", from.d, job.data->width());
  differs("n_latents", from.n, job.model.n_latents);
  differs("encoder", from.config.encoder, job.model.encoder);
  differs("activation", from.config.activation, job.model.activation);
  differs("decoder", from.config.decoder, job.model.decoder);
  if (has_front(job.model)) differs("hidden", from.config.hidden, job.model.hidden);
  if (has_back(job.model))
    differs("decoder_norm", from.config.decoder_norm, job.model.decoder_norm);
  Dictionary out = empty_dictionary(job.model, from.n, from.d, latents, padded, job.device);
  out.w_enc_ld.copy_(from.w_enc_ld);
  if (!out.tied()) out.w_dec_ld.copy_(from.w_dec_ld);
  out.b_enc_l.copy_(from.b_enc_l);
  for (size_t i = 0; i < out.extra_l.size(); ++i) out.extra_l[i].copy_(from.extra_l[i]);
  out.b_dec_d.copy_(from.b_dec_d);
  for (size_t i = 0; i < out.hidden.size(); ++i) out.hidden[i].copy_(from.hidden[i]);
  refuse_still_thresholds(mesh, out, latents.size(), folder);
  double off = out.unit_rows() ? unit_decoder_rows(out) : 0;
  mesh.feature->all_reduce(view_of(&off, 1), ReduceOp::max, "decoder norms");
  if (off > 1e-2 && activation_named(job.model.activation).has_k)
    note(
        fmt::format("note: the decoder rows of '{}' were not unit and are now; {} selects by "
                    "z |w_dec|",
                    folder, job.model.activation));
  // Its weights belong to its own normalisation.
  const double ratio = saved.normalization.scale / state.normalization.scale;
  state.var_total *= ratio * ratio;
  state.normalization = saved.normalization;
  say(fmt::format("starting from '{}' (step {})", folder, saved.step));
  return out;
}

// A damaged checkpoint is never passed over for an older one: that would lose work silently.
TrainState resumed_state(const Mesh& mesh, const TrainJob& job) {
  TrainState state;
  try {
    agree(*mesh.world, [&] {
      read_checkpoint(mesh, job.resume_from, {job.resume_config, job.run.seed, job.model},
                      job.identity, job.step.optim, job.device, state);
    });
  } catch (const Error& error) {
    if (error.code() != ExitCode::bad_data) throw;
    throw Error(error.code(), error.what(), "--run.resume FOLDER takes another checkpoint",
                error.agreed());
  }
  say(fmt::format("resuming '{}' at step {}", job.resume_from, state.step));
  return state;
}

}  // namespace

TrainState start_state(const Mesh& mesh, const TrainJob& job) {
  const c10::NoGradGuard no_grad;
  if (!job.resume_from.empty()) return resumed_state(mesh, job);
  TrainState state;
  Sample sample;
  agree(*mesh.world, [&] { sample = read_sample(job); });
  report(sample);
  state.normalization = sample.facts.normalization;
  state.var_total = sample.facts.var_total;
  const int64_t n = job.model.n_latents;
  const Range latents = shard_of(n, mesh.feature_size(), mesh.feature_index);
  const int64_t padded = ceil_div(latents.size(), mesh.data_size()) * mesh.data_size();
  state.dictionary = job.model.init_from.empty()
                         ? initialise(mesh, job.model, n, latents, padded,
                                      sample.rows_md.to(job.device), job.run.seed)
                         : from_another(mesh, job, latents, padded, state);
  reset_optimiser(mesh, optimiser_named(job.step.optim.name), job.step.optim.ema > 0, state);
  return state;
}

}  // namespace megadict
