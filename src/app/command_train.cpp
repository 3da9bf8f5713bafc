// megadict train: one dictionary on the mesh, fresh or resumed.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/fields.h"
#include "app/run_folder.h"
#include "app/saved_config.h"
#include "app/settings.h"
#include "base/log.h"
#include "base/stop_request.h"
#include "comm/watchdog.h"
#include "data/norm_filter.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/tensor_views.h"
#include "train/loop.h"

namespace megadict {

namespace {

OptionSet options(Config& config) {
  return {.command = "train",
          .summary = "Trains one dictionary on a data x feature mesh of all ranks.",
          .fields = fields_of(config),
          .config_file = true,
          .required = {"data.path", "run.dir"}};
}

// Everything of a run that has to outlive the call that starts it.
struct Prepared {
  Settings settings;
  std::string resume_from;
  ShardIndex data;
  NormFilter filter;
  std::unique_ptr<BatchPlan> plan;
  std::unique_ptr<ShardIndex> eval_data;
};

std::unique_ptr<ShardIndex> open_eval(const DataConfig& config, int64_t width) {
  std::string path = config.eval_path;
  if (path.empty() && folder_exists(config.path + "/eval")) path = config.path + "/eval";
  if (path.empty()) return nullptr;
  auto index = std::make_unique<ShardIndex>(ShardIndex::open(path));
  if (index->width() != width)
    fail_agreed(ExitCode::bad_data,
                fmt::format("held-out rows in '{}' are {} wide, the training rows {}", path,
                            index->width(), width));
  return index;
}

void compare_with_saved(const std::string& path, const nlohmann::ordered_json& saved,
                        const Settings& settings) {
  const auto differences = compare_for_resume(saved, path, settings);
  refuse_fixed(differences, path);
  for (const Difference& change : differences)
    if (change.on_resume == OnResume::notice)
      note(fmt::format("note: {} was {}, now {}", change.name, change.before, change.after));
}

Prepared prepare(Settings settings, Launch& launch) {
  Prepared run;
  run.resume_from = resume_source(settings.config.run);
  const std::string saved_path =
      run.resume_from.empty() ? "" : config_of_checkpoint(run.resume_from);
  nlohmann::ordered_json saved;
  if (!saved_path.empty()) {
    saved = nlohmann::ordered_json::parse(read_file(saved_path));
    adopt_saved_resolutions(saved, saved_path, settings);
  }
  run.data = ShardIndex::open(settings.config.data.path);
  run.filter = filter_by_norm(run.data, settings.config.data.max_norm_multiple);
  if (run.filter.dropped > 0)
    say(fmt::format("norm filter: {} of {} rows dropped (median norm {:.4g})", run.filter.dropped,
                    run.data.rows(), run.filter.median));
  run.plan = std::make_unique<BatchPlan>(run.data, settings.config.data, settings.config.run.seed,
                                         run.filter.survivors);
  const DataFacts facts{.width = run.data.width(),
                        .rows = run.data.rows() - run.filter.dropped,
                        .steps = run.plan->steps(),
                        .ranks = launch.facts().ranks};
  check_against_data(settings, facts);
  if (!saved_path.empty()) compare_with_saved(saved_path, saved, settings);
  for (const std::string& remark : remarks_on(settings, facts)) note("note: " + remark);
  run.eval_data = open_eval(settings.config.data, run.data.width());
  run.settings = std::move(settings);
  return run;
}

DataIdentity identity_of(const Prepared& run) {
  const DatasetFacts& facts = run.data.facts();
  return {fingerprint_of(run.data, run.filter.survivors),
          run.data.rows() - run.filter.dropped,
          std::string(name_of(facts.dtype)),
          facts.model,
          facts.hook,
          facts.tokenizer,
          facts.layer};
}

TrainJob job_of(const Prepared& run, const Launch& launch) {
  const Config& config = run.settings.config;
  TrainJob job;
  job.data_config = config.data;
  job.model = config.model;
  job.step = {config.optim, config.dead, config.model.l1_warmup_steps, run.plan->steps()};
  job.run = config.run;
  job.log = config.log;
  job.checkpoint = config.checkpoint;
  job.eval = config.eval;
  job.device = device_of(config.run.device, launch.facts().local_rank);
  job.data = &run.data;
  job.plan = run.plan.get();
  job.eval_data = run.eval_data.get();
  job.identity = identity_of(run);
  job.resume_from = run.resume_from;
  return job;
}

}  // namespace

std::string help_train() {
  Config config;
  return help_text(options(config));
}

int run_train(Launch& launch, const Args& args) {
  Settings settings;
  settings.sources = read_options(options(settings.config), args);
  check_config(settings.config);
  install_stop_handlers();
  start_watchdog(settings.config.debug);
  Communicator& world =
      launch.world_for(settings.config.run.device == "cuda" ? Device::cuda : Device::cpu);
  at::set_num_threads(resolve_threads(settings.config.run.threads, launch.facts()));
  const Prepared run = prepare(std::move(settings), launch);
  const Mesh mesh = make_mesh(world, run.settings.config.mesh);
  // All ranks have looked at the folder before anything is written into it.
  launch.world().barrier("start");
  write_run_facts(run.settings, launch);
  return static_cast<int>(run_training(mesh, job_of(run, launch)));
}

}  // namespace megadict
