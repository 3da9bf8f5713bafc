// megadict eval: every metric of a dictionary on held-out shards, on the mesh.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/options.h"
#include "base/log.h"
#include "comm/mesh.h"
#include "eval/evaluate.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/saved.h"

namespace megadict {

namespace {

struct EvalOptions {
  std::string run, checkpoint, data, truth, json, weights = "last";
  int64_t tokens = 0, batch_size = 4096;
  int threads = 0;
  MeshConfig mesh;
};

OptionSet options(EvalOptions& own) {
  return {
      .command = "eval",
      .summary = "Judges a dictionary on held-out rows: sums in fp64, divided once.",
      .fields =
          {{"run.dir", &own.run, "", "folder of the run, or of a dictionary"},
           {"checkpoint", &own.checkpoint, "", "this checkpoint instead of the newest weights"},
           {"data.path", &own.data, "", "shards; a folder that has eval/ is judged on that"},
           {"weights", &own.weights, "", "the last ones or their average", one_of({"last", "ema"})},
           {"eval.truth", &own.truth, "", "folder of `data synth`: adds mcc against its atoms"},
           {"eval.tokens", &own.tokens, "rows", "the first so many; 0 = all", at_least(0)},
           {"data.batch_size", &own.batch_size, "rows", "of a pass; does not show in the result",
            at_least(1)},
           {"mesh.data", &own.mesh.data, "ranks", "0 = what is left", at_least(0)},
           {"mesh.feature", &own.mesh.feature, "ranks", "0 = as many as possible", at_least(0)},
           {"run.threads", &own.threads, "threads", "of a rank; 0 = its share of the processors",
            at_least(0)},
           {"json", &own.json, "", "also write the numbers to this file"}},
      .required = {"run.dir", "data.path"}};
}

std::string held_out(const std::string& path) {
  return folder_exists(path + "/eval") ? path + "/eval" : path;
}

}  // namespace

std::string help_eval() {
  EvalOptions own;
  return help_text(options(own));
}

int run_eval(Launch& launch, const Args& args) {
  EvalOptions own;
  read_options(options(own), args);
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  const std::string folder = find_checkpoint(own.checkpoint.empty() ? own.run : own.checkpoint);
  const ShardIndex data = ShardIndex::open(held_out(own.data));
  const Mesh mesh = make_mesh(launch.world(), own.mesh);
  const SavedDictionary saved =
      load_saved(folder, own.weights, mesh.feature_size(), mesh.feature_index);
  if (saved.dictionary.d != data.width())
    fail_agreed(ExitCode::bad_data,
                fmt::format("the dictionary in '{}' has width {}, the rows of '{}' {}", folder,
                            saved.dictionary.d, held_out(own.data), data.width()));
  const MetricReport report =
      evaluate(mesh, saved.dictionary, saved.normalization, data, {own.tokens, own.batch_size});
  nlohmann::ordered_json json = metrics_json(report);
  json["checkpoint"] = folder;
  json["data"] = held_out(own.data);
  json["step"] = saved.step;
  json["tokens"] = saved.tokens;
  say(metrics_text(report));
  if (!own.json.empty() && launch.facts().rank == 0) write_json(own.json, json);
  return 0;
}

}  // namespace megadict
