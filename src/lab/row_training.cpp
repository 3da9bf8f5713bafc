#include "lab/row_training.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "comm/backends.h"
#include "data/batch_stream.h"
#include "eval/evaluate.h"
#include "io/file.h"
#include "model/activations.h"
#include "train/start.h"

namespace megadict {

namespace {

constexpr int64_t kDeadSteps = 1000;

DataConfig data_config(const RowTraining& of) {
  DataConfig config;
  config.path = of.path;
  config.batch_size = config.micro_batch_size = of.batch;
  config.tokens = of.batch * of.steps;
  config.normalize = of.normalize;
  return config;
}

// As check_against_data() of the trainer's settings resolves it.
TrainJob job_of(const RowTraining& of, const ShardIndex& data, const BatchPlan& plan) {
  TrainJob job;
  job.data_config = data_config(of);
  job.model = of.model;
  job.step.optim = of.optim;
  job.step.optim.warmup_steps = std::min<int64_t>(1000, of.steps / 20);
  job.step.dead.auxk_alpha = of.auxk_alpha;
  job.step.dead.k_aux = std::clamp<int64_t>(data.width() / 2, 1, of.model.n_latents);
  job.step.dead.window_tokens = std::clamp<int64_t>(of.batch * of.steps / 10, 1, 10'000'000);
  job.step.l1_warmup_steps = std::min<int64_t>(of.model.l1_warmup_steps, of.steps / 5);
  job.step.total_steps = of.steps;
  job.step.seed = job.run.seed = of.seed;
  job.data = &data;
  job.plan = &plan;
  return job;
}

std::string held_out(const std::string& path) {
  const std::string folder = path + "/eval";
  if (!folder_exists(folder))
    fail_agreed(ExitCode::bad_data, fmt::format("'{}' has no eval/ to judge on", path),
                "megadict data import --eval_fraction 0.1");
  return folder;
}

}  // namespace

void check_rows(const std::string& path) {
  if (path.empty())
    fail_agreed(ExitCode::usage, "this experiment trains on activations",
                "--data.path FOLDER, as megadict data import makes it");
  const ShardIndex data = ShardIndex::open(path);
  if (ShardIndex::open(held_out(path)).width() != data.width())
    fail_agreed(ExitCode::bad_data,
                fmt::format("'{0}' and '{0}/eval' hold rows of different widths", path));
}

nlohmann::ordered_json settings_json(const RowTraining& of) {
  const ModelConfig& model = of.model;
  return {{"data", file_name(of.path)},
          {"encoder", model.encoder},
          {"hidden", model.hidden},
          {"activation", model.activation},
          {"decoder", model.decoder},
          {"decoder_norm", model.decoder_norm},
          {"n_latents", model.n_latents},
          {"k", model.k},
          {"l1", model.l1_coefficient},
          {"l0_target", model.l0_target},
          {"optimiser", of.optim.name},
          {"lr", of.optim.lr},
          {"hidden_decay", of.optim.hidden_decay},
          {"auxk_alpha", of.auxk_alpha},
          {"normalize", of.normalize},
          {"batch", of.batch},
          {"steps", of.steps},
          {"seed", of.seed}};
}

nlohmann::ordered_json train_on_rows(const RowTraining& of) {
  if (activation_named(of.model.activation).has_k && of.model.k > of.model.n_latents)
    fail(ExitCode::usage,
         fmt::format("k = {} active of {} latents", of.model.k, of.model.n_latents),
         "a smaller --k");
  const ShardIndex data = ShardIndex::open(of.path), judged = ShardIndex::open(held_out(of.path));
  const DataConfig config = data_config(of);
  const BatchPlan plan(data, config, of.seed);
  const TrainJob job = job_of(of, data, plan);
  const std::unique_ptr<Communicator> self = make_self_communicator("world");
  const Mesh mesh = make_mesh(*self, {1, 1});
  TrainState state = start_state(mesh, job);
  StepWorkspace workspace = make_workspace(state, "fp32");
  BatchStream stream(data, plan, 1, 1, 0, 0, 0, config.queue);
  for (int64_t step = 0; step < of.steps; ++step) {
    const StepResult result = train_step(
        mesh, job.step, [&] { return stream.next(); }, false, state, workspace);
    if (!result.finite)
      fail(ExitCode::diverged, fmt::format("values of step {} are not finite", step),
           "a smaller --rate");
  }
  const MetricReport report =
      evaluate(mesh, state.dictionary, state.normalization, judged, {.batch_rows = of.batch});
  const int64_t window = of.batch * std::min<int64_t>(kDeadSteps, of.steps / 2);
  const double dead = state.tokens_since_fired_l.ge(window).to(at::kDouble).mean().item<double>();
  const double scale = state.normalization.scale;
  return {{"fvu", report["fvu"]},
          {"mse", report["mse"] * scale * scale / static_cast<double>(data.width())},
          {"l0", report["l0"]},
          {"dead", dead}};
}

}  // namespace megadict
