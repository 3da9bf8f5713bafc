#include "app/run_folder.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/build_facts.h"
#include "app/rank_map.h"
#include "app/saved_config.h"
#include "base/error.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/saved.h"

namespace megadict {

std::string resume_source(const RunConfig& run) {
  if (run.resume == "auto") return newest_checkpoint(run.dir);
  if (run.resume != "never") return find_checkpoint(run.resume);
  std::error_code ignored;
  if (std::filesystem::is_directory(run.dir, ignored) &&
      !std::filesystem::is_empty(run.dir, ignored))
    fail_agreed(ExitCode::usage,
                fmt::format("run.dir '{}' is not empty and run.resume is never", run.dir),
                "--run.resume auto continues it; or choose another run.dir");
  return "";
}

std::string config_of_checkpoint(const std::string& checkpoint) {
  // RUN/checkpoints/step_N or RUN/final.
  std::string folder = parent_folder(checkpoint);
  if (file_name(folder) == "checkpoints") folder = parent_folder(folder);
  const std::string path = folder + "/config.json";
  return file_exists(path) ? path : "";
}

void write_run_facts(const Settings& settings, Launch& launch) {
  const std::string& folder = settings.config.run.dir;
  const std::string ranks = rank_map_text(launch);
  if (launch.facts().rank == 0) {
    make_folders(folder);
    const LaunchFacts& facts = launch.facts();
    nlohmann::ordered_json env;
    env["megadict_version"] = version();
    env["compiler"] = compiler();
    env["torch"] = torch_facts();
    env["processor"] = processor();
    env["cpu_features"] = cpu_features();
    env["gpus"] = gpu_facts();
    env["launcher"] = facts.launcher;
    env["ranks"] = facts.ranks;
    env["nodes"] = facts.nodes;
    env["settings"] = facts.settings;
    write_json(folder + "/config.json", config_json(settings));
    write_json(folder + "/env.json", env);
    write_file_atomic(folder + "/ranks.txt", ranks + "\n");
  }
  launch.world().barrier("run folder");
}

}  // namespace megadict
