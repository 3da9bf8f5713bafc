#include "app/training.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "app/memory_check.h"
#include "app/run_folder.h"
#include "app/staging.h"
#include "app/together.h"
#include "app/truth.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/agree.h"
#include "data/norm_filter.h"
#include "data/row_reader.h"
#include "data/stage.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/saved.h"
#include "train/encode_choice.h"
#include "train/isa_choice.h"
#include "train/run_log.h"
#include "train/schedule.h"
#include "train/start.h"

namespace megadict {

namespace {

struct TrainData {
  ShardIndex rows;
  std::optional<ShardIndex> held_out;
  std::vector<int64_t> survivors;  // of the norm filter; empty = all
  int64_t rows_left() const {
    return survivors.empty() ? rows.rows() : static_cast<int64_t>(survivors.size());
  }
};

// Every rank scans its part of the norms; all decide alike.
std::vector<int64_t> surviving_rows(Communicator& world, const ShardIndex& index, double multiple) {
  if (multiple == 0) return {};
  const Range mine = shard_of(index.rows(), world.size(), world.rank());
  std::vector<float> own;
  agree(world, [&] { own = row_norms(index, mine); });
  const auto norms = gather_parts(world, own, "row norms");
  const NormFilter filter = filter_by_norm(norms, multiple);
  say(fmt::format("norm filter: {} of {} rows are above {:g} x {:.4g} and left out", filter.dropped,
                  index.rows(), multiple, filter.median));
  return filter.survivors;
}

TrainData open_data(Communicator& world, Settings& settings) {
  DataConfig& config = settings.config.data;
  TrainData data;
  if (config.eval_path.empty()) {
    const std::string beside = config.path + "/eval";
    config.eval_path = rank_zero_finds(
        world, [&] { return folder_exists(beside) ? beside : ""; }, "held-out rows");
    if (!config.eval_path.empty()) settings.sources["data.eval_path"] = "resolved";
  }
  rank_zero_first(world, [&] {
    data.rows = ShardIndex::open(config.path);
    if (!config.eval_path.empty()) data.held_out = ShardIndex::open(config.eval_path);
  });
  refuse_other_shards(world, data.rows, config.path);
  if (data.held_out) refuse_other_shards(world, *data.held_out, config.eval_path);
  if (data.held_out && data.held_out->width() != data.rows.width())
    fail_agreed(ExitCode::bad_data,
                fmt::format("data.eval_path {} holds rows of width {}, data.path {} of width {}",
                            in_quotes(config.eval_path), data.held_out->width(),
                            in_quotes(config.path), data.rows.width()));
  // A run's folders beside shards would be taken for a data set's (eval/, final/).
  const std::string& run = settings.config.run.dir;
  refuse_folder_of_shards(data.rows, "run.dir", run);
  if (data.held_out) refuse_folder_of_shards(*data.held_out, "run.dir", run);
  data.survivors = surviving_rows(world, data.rows, config.max_norm_multiple);
  return data;
}

// Training shards that the plan needs, and all that are held out, to the node's disk.
void stage_data(Launch& launch, const std::string& folder, const BatchPlan& plan, TrainData& data) {
  if (folder.empty()) return;
  stage_shards(launch, folder, shards_needed(data.rows, plan), data.rows);
  if (!data.held_out) return;
  std::vector<int32_t> all(data.held_out->shards().size());
  std::iota(all.begin(), all.end(), 0);
  stage_shards(launch, folder, all, *data.held_out);
}

at::Device training_device(const RunConfig& run, const LaunchFacts& facts) {
  if (run.device == "cpu") return at::Device(at::kCPU);
  // Sums in an order that repeats: a resumed run is to give the same bits.
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  const int visible = at::detail::getCUDAHooks().deviceCount();
  const int index = visible > 0 ? facts.local_rank % visible : 0;
  return {at::kCUDA, static_cast<at::DeviceIndex>(index)};
}

void settle_threads(Settings& settings, const LaunchFacts& facts) {
  RunConfig& run = settings.config.run;
  const int threads = resolve_threads(run.threads, facts);
  if (run.threads == 0) settings.sources["run.threads"] = "resolved";
  run.threads = threads;
  at::set_num_threads(threads);
}

// What `auto` came to mean.
void resolve_field(Settings& settings, const char* name, std::string& member,
                   const std::string& value) {
  if (member == value) return;
  member = value;
  settings.sources[name] = "resolved";
}

// Resolves what depends on the data; returns the plan of the resolved settings. Refuses before it
// remarks.
BatchPlan settle(Settings& settings, const StartPoint& start, const TrainData& data, int ranks) {
  Config& config = settings.config;
  const BatchPlan plan(data.rows, config.data, config.run.seed, data.survivors);
  const DataFacts facts{.width = data.rows.width(),
                        .rows = data.rows_left(),
                        .steps = plan.steps(),
                        .tokens = plan.tokens_at(plan.steps()),
                        .ranks = ranks,
                        .sample_bytes = static_cast<int64_t>(size_of(data.rows.facts().dtype))};
  check_against_data(settings, facts);
  report_differences(start, settings);
  if (source_of(settings, "optim.lr") == "resolved")
    say(fmt::format(
        "optim.lr {:g} for {} latents and {} steps of {} rows (the field's rule: {:.2g})",
        config.optim.lr, config.model.n_latents, facts.steps, config.data.batch_size,
        field_rate(config.model.n_latents)));
  for (const std::string& remark : remarks_on(settings, facts)) note("note: " + remark);
  return BatchPlan(data.rows, config.data, config.run.seed, data.survivors);
}

DataIdentity identity_of(const TrainData& data) {
  const DatasetFacts& facts = data.rows.facts();
  return {fingerprint_of(data.rows, data.survivors),
          data.rows_left(),
          data.rows.width(),
          std::string(name_of(facts.dtype)),
          facts.model,
          facts.hook,
          facts.tokenizer,
          facts.layer};
}

// What other folders that the settings name hold, looked at before anything is written.
struct OtherFolders {
  std::string init_from;  // the folder of weights that model.init_from means; "" = none
  at::Tensor truth_nd;    // the planted dictionary of eval.truth, undefined without one
};

OtherFolders read_other_folders(Communicator& world, const Config& config, const StartPoint& start,
                                int64_t width) {
  OtherFolders out;
  const std::string& from = config.model.init_from;
  if (start.checkpoint.empty() && !from.empty())
    out.init_from = rank_zero_finds(
        world, [&] { return find_checkpoint(from); }, "dictionary to start from");
  rank_zero_first(world, [&] {
    if (!config.eval.truth.empty()) out.truth_nd = read_truth(config.eval.truth, width);
  });
  return out;
}

// eval.truth: the finished dictionary against the planted one, also into final/eval.json.
void judge_final(const Mesh& mesh, const TrainJob& job, const at::Tensor& truth_nd) {
  const std::string folder = job.run.dir + "/final";
  SavedDictionary saved;
  agree(*mesh.world,
        [&] { saved = load_saved(folder, "last", mesh.feature_size(), mesh.feature_index); });
  saved.dictionary.w_dec_ld = saved.dictionary.w_dec_ld.to(job.device);
  const nlohmann::ordered_json scores = judge_against_truth(mesh, saved.dictionary, truth_nd);
  agree(*mesh.world, [&] {
    if (mesh.world->rank() != 0) return;
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    const std::string path = folder + "/eval.json";
    if (file_exists(path)) json = nlohmann::ordered_json::parse(read_file(path));
    json.update(scores);
    write_json(path, json);
  });
}

}  // namespace

TrainingRows open_training_rows(Launch& launch, Settings settings) {
  TrainData data = open_data(launch.world(), settings);
  const Config& config = settings.config;
  const BatchPlan plan(data.rows, config.data, config.run.seed, data.survivors);
  stage_data(launch, config.data.stage_dir, plan, data);
  return {std::move(data.rows), plan};
}

ExitCode train_dictionary(Launch& launch, Settings settings, const Args& args, FolderLock& lock,
                          bool agree_on_rows, SharedStream* rows) {
  Config& config = settings.config;
  if (agree_on_rows && config.mesh.overlap)
    fail_agreed(ExitCode::usage,
                "mesh.overlap = true where a failure is to stay this run's: ranks cannot agree on "
                "one while messages are under way",
                "leave it out: the bits are the same");
  // A device that is not there is said before anything is read.
  const at::Device device = training_device(config.run, launch.facts());
  Communicator& world = launch.world_for(device.is_cuda() ? Device::cuda : Device::cpu);
  const StartPoint start = find_start(launch.world(), config.run, lock);
  adopt_start(start, settings);
  settle_threads(settings, launch.facts());
  TrainData data = open_data(launch.world(), settings);
  const BatchPlan plan = settle(settings, start, data, launch.facts().ranks);
  if (device.is_cpu())
    check_memory(launch, config, data.rows.width(),
                 static_cast<int64_t>(size_of(data.rows.facts().dtype)), data.rows_left());
  const OtherFolders others = read_other_folders(launch.world(), config, start, data.rows.width());
  Mesh mesh = make_mesh(world, config.mesh);
  if (rows != nullptr) mesh.sweep = &rows->across();
  TrainJob job{.data_config = config.data,
               .model = config.model,
               .step = {config.optim, config.dead, config.model.l1_warmup_steps, plan.steps(),
                        config.mesh.exchange, config.run.deterministic, config.mesh.overlap,
                        config.run.seed},
               .kernels = config.kernels,
               .encode_was_auto = source_of(settings, "kernels.encode") == "resolved",
               .run = config.run,
               .log = config.log,
               .checkpoint = config.checkpoint,
               .eval = config.eval,
               .device = device,
               .data = &data.rows,
               .plan = &plan,
               .eval_data = data.held_out ? &*data.held_out : nullptr,
               .identity = identity_of(data),
               .resume_from = start.checkpoint,
               .resume_config = start.config_path,
               .agree_on_rows = agree_on_rows,
               .rows = rows};
  job.model.init_from = others.init_from;
  // A start that is refused has written nothing.
  resolve_field(
      settings, "kernels.isa", config.kernels.isa,
      choose_kernels(launch.world(), config.kernels,
                     source_of(settings, "kernels.isa") == "resolved", config.run.deterministic));
  stage_data(launch, config.data.stage_dir, plan, data);
  TrainState state = start_state(mesh, job);
  job.kernels.encode = choose_encode(mesh, job, state);
  resolve_field(settings, "kernels.encode", config.kernels.encode, job.kernels.encode);
  write_run_folder(launch, settings, args, lock);
  const nlohmann::ordered_json at_start = communication_by_axis(mesh);
  const ExitCode code = run_training(mesh, job, std::move(state));
  if (code == ExitCode::done && others.truth_nd.defined()) judge_final(mesh, job, others.truth_nd);
  write_communication(mesh, config.run.dir, at_start);
  return code;
}

}  // namespace megadict
