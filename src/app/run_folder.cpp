#include "app/run_folder.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/build_facts.h"
#include "app/saved_config.h"
#include "app/together.h"
#include "base/error.h"
#include "base/log.h"
#include "base/version.h"
#include "comm/agree.h"
#include "io/file.h"
#include "io/json_file.h"
#include "io/json_lines.h"
#include "io/output_path.h"
#include "model/saved.h"

namespace megadict {

using nlohmann::ordered_json;

namespace {

// Results of an earlier start; settings alone (a start that failed early) are none.
bool holds_run(const std::string& folder) {
  return file_exists(folder + "/metrics.jsonl") || folder_exists(folder + "/checkpoints") ||
         folder_exists(folder + "/final");
}

// RUN of RUN/checkpoints/NAME and RUN/final.
std::string run_of(const std::string& checkpoint) {
  const std::string parent = parent_folder(checkpoint);
  return file_name(parent) == "checkpoints" ? parent_folder(parent) : parent;
}

std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string checkpoint_to_resume(const RunConfig& run) {
  if (run.resume == "auto") {
    const std::string newest = newest_checkpoint(run.dir);
    return newest.empty() ? newest_state(run.dir) : newest;
  }
  const bool holds = holds_run(run.dir);
  if (run.resume == "never") {
    if (holds)
      fail(ExitCode::usage, fmt::format("run.dir {} already holds a run", in_quotes(run.dir)),
           "--run.resume auto goes on with it; another run.dir starts a new one");
    return "";
  }
  const std::string path = without_slash(run.resume);
  if (!file_exists(path + "/state.json"))
    fail(ExitCode::usage,
         fmt::format("run.resume = {}: no checkpoint, there is no state.json in it; allowed: "
                     "never, auto, or the folder of a checkpoint",
                     in_quotes(run.resume)));
  const bool own = file_exists(run.dir + "/config.json") &&
                   read_file(run.dir + "/config.json") == read_file(run_of(path) + "/config.json");
  if (holds && !own)
    fail(ExitCode::usage,
         fmt::format("run.dir {} already holds a run, and the checkpoint {} is "
                     "another run's",
                     in_quotes(run.dir), in_quotes(path)),
         "another run.dir");
  return path;
}

void hold(const std::string& folder, FolderLock& lock) {
  if (!lock.held() && !lock.take(folder))
    fail(ExitCode::usage, fmt::format("another process works in run.dir {}", in_quotes(folder)),
         "another run.dir, or wait until it has ended");
}

// What a run writes must not be there as something else: better said now than after its steps.
void refuse_obstacles(const std::string& run) {
  for (const char* name : {"checkpoints", "final"})
    if (file_exists(run + "/" + name))
      fail(ExitCode::usage, fmt::format("'{}/{}' is no folder", run, name), "move it away");
  for (const char* name : {"latest", "metrics.jsonl", "config.json", "env.json", "ranks.txt"})
    if (folder_exists(run + "/" + name))
      fail(ExitCode::usage, fmt::format("'{}/{}' is a folder", run, name), "move it away");
  if (file_exists(run + "/metrics.jsonl")) read_json_lines(run + "/metrics.jsonl");
}

ordered_json parsed(const StartPoint& start) {
  if (nests_too_deep(start.config_text))
    fail_agreed(ExitCode::bad_data,
                fmt::format("cannot use {}: too many brackets within each other",
                            in_quotes(start.config_path)));
  try {
    return ordered_json::parse(start.config_text);
  } catch (const ordered_json::exception& e) {
    fail_agreed(ExitCode::bad_data,
                fmt::format("cannot use {}: it is not JSON", in_quotes(start.config_path)));
  }
}

ordered_json environment_json(const LaunchFacts& facts, const Args& args) {
  ordered_json out;
  out["megadict"] = version();
  out["command"] = args;
  out["compiler"] = compiler();
  out["torch"] = torch_facts();
  out["processor"] = processor();
  out["cpu_features"] = cpu_features();
  out["gpus"] = gpu_facts();
  out["launcher"] = facts.launcher;
  out["ranks"] = facts.ranks;
  out["nodes"] = facts.nodes;
  out["environment"] = facts.settings;
  return out;
}

}  // namespace

StartPoint find_start(Communicator& world, const RunConfig& run, FolderLock& lock) {
  StartPoint start;
  agree(world, [&] {
    if (world.rank() != 0) return;
    refuse_output_folder(run.dir);
    if (folder_exists(run.dir)) {
      hold(run.dir, lock);
      refuse_obstacles(run.dir);
    }
    start.checkpoint = checkpoint_to_resume(run);
    if (!start.checkpoint.empty()) {
      start.config_path = run_of(start.checkpoint) + "/config.json";
      if (!file_exists(start.config_path))
        fail(ExitCode::bad_data,
             fmt::format("cannot resume {}: {} is missing, so nobody knows its settings",
                         in_quotes(start.checkpoint), in_quotes(start.config_path)),
             "--model.init_from takes the weights alone");
      start.config_text = read_file(start.config_path);
    }
  });
  start.checkpoint = broadcast_text(world, start.checkpoint, "checkpoint to resume");
  start.config_path = broadcast_text(world, start.config_path, "saved settings");
  start.config_text = broadcast_text(world, start.config_text, "saved settings");
  return start;
}

void adopt_start(const StartPoint& start, Settings& settings) {
  if (!start.checkpoint.empty())
    adopt_saved_resolutions(parsed(start), start.config_path, settings);
}

void report_differences(const StartPoint& start, const Settings& settings) {
  if (start.checkpoint.empty()) return;
  const auto differences = compare_for_resume(parsed(start), start.config_path, settings);
  refuse_fixed(differences, start.checkpoint);
  for (const Difference& change : differences)
    if (change.on_resume == OnResume::notice)
      note(fmt::format("note: {} was {}, is {} from here on", change.name, in_quotes(change.before),
                       in_quotes(change.after)));
}

void write_run_folder(Launch& launch, const Settings& settings, const Args& args,
                      FolderLock& lock) {
  const std::string& dir = settings.config.run.dir;
  const auto ranks = gather_ranks(launch, settings.config.run.threads);
  agree(launch.world(), [&] {
    if (launch.facts().rank != 0) return;
    make_folders(dir);
    if (!lock.held()) {
      hold(dir, lock);
      checkpoint_to_resume(settings.config.run);  // again: who was faster may have ended by now
    }
    write_json(dir + "/config.json", config_json(settings));
    write_json(dir + "/env.json", environment_json(launch.facts(), args));
    write_file_atomic(dir + "/ranks.txt", rank_table(ranks) + "\n");
  });
}

}  // namespace megadict
