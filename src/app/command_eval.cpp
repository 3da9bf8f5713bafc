// megadict eval: every metric of a dictionary on held-out shards, on the mesh.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/options.h"
#include "app/together.h"
#include "app/truth.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/mesh.h"
#include "comm/watchdog.h"
#include "eval/evaluate.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/formats.h"
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
          {{"run.dir", &own.run, "", "folder of a run, a checkpoint, or another tool's dictionary"},
           {"checkpoint", &own.checkpoint, "", "this checkpoint instead of the newest weights"},
           {"data.path", &own.data, "", "shards; a folder that has eval/ is judged on that"},
           {"weights", &own.weights, "", "the last ones or their average", one_of({"last", "ema"})},
           {"eval.truth", &own.truth, "",
            "folder of `data synth`: adds mcc against its dictionary"},
           {"eval.tokens", &own.tokens, "rows", "the first so many; 0 = all", between(0, 1e15)},
           {"data.batch_size", &own.batch_size, "rows", "of a pass; shows below 1e-8 of a result",
            between(1, 1e9)},
           {"mesh.data", &own.mesh.data, "ranks", "parts of the batch; 0 = auto",
            between(0, 1048576)},
           {"mesh.feature", &own.mesh.feature, "ranks", "parts of the dictionary; 0 = auto",
            between(0, 1048576)},
           {"run.threads", &own.threads, "threads", "per rank; 0 = cpus / ranks that share them",
            between(0, 4096)},
           {"json", &own.json, "", "also write the numbers to this file"}},
      .required = {"run.dir", "data.path"}};
}

std::string held_out(const std::string& path) {
  return folder_exists(path + "/eval") ? path + "/eval" : path;
}

// One shard of a dictionary that was read whole.
SavedDictionary shard_of_whole(SavedDictionary saved, int parts, int index) {
  Dictionary& d = saved.dictionary;
  const bool tied = d.tied();
  d.latents = shard_of(d.n, parts, index);
  const auto mine = [&](const at::Tensor& t) {
    return t.narrow(0, d.latents.begin, d.latents.size()).contiguous();
  };
  d.w_enc_ld = mine(d.w_enc_ld);
  d.w_dec_ld = tied ? d.w_enc_ld : mine(d.w_dec_ld);
  d.b_enc_l = mine(d.b_enc_l);
  for (at::Tensor& extra : d.extra_l) extra = mine(extra);
  return saved;
}

struct Judged {
  std::string folder;
  SavedDictionary saved;  // this rank's shard
};

// Rank 0's answer on every rank: a run that goes on may save another meanwhile.
std::string folder_of(const EvalOptions& own, Communicator& world) {
  const std::string path = own.checkpoint.empty() ? own.run : own.checkpoint;
  const bool foreign = own.weights == "last" && foreign_format(path) != nullptr;
  std::string found;
  if (world.rank() == 0) found = foreign ? path : find_checkpoint(path);
  return broadcast_text(world, found, "dictionary");
}

Judged load_dictionary(const EvalOptions& own, const std::string& folder, const Mesh& mesh) {
  const int parts = mesh.feature_size(), index = mesh.feature_index;
  if (foreign_format(folder) != nullptr && own.weights == "last")
    return {folder, shard_of_whole(load_foreign(folder), parts, index)};
  return {folder, load_saved(folder, own.weights, parts, index)};
}

}  // namespace

std::string help_eval() {
  EvalOptions own;
  return help_text(options(own));
}

int run_eval(Launch& launch, const Args& args) {
  EvalOptions own;
  read_options(options(own), args);
  start_watchdog({});
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  const Mesh mesh = make_mesh(launch.world(), own.mesh);
  Judged judged;
  ShardIndex data;
  at::Tensor truth;
  if (launch.facts().rank == 0 && !own.json.empty() && !folder_exists(parent_folder(own.json)))
    fail(ExitCode::error, fmt::format("cannot write {}: there is no folder {}", in_quotes(own.json),
                                      in_quotes(parent_folder(own.json))));
  const std::string folder = folder_of(own, launch.world());
  rank_zero_first(launch.world(), [&] {
    judged = load_dictionary(own, folder, mesh);
    data = ShardIndex::open(held_out(own.data));
    if (!own.truth.empty()) truth = read_truth(own.truth, judged.saved.dictionary.d);
  });
  refuse_other_shards(launch.world(), data, held_out(own.data));
  const Dictionary& dictionary = judged.saved.dictionary;
  if (dictionary.d != data.width())
    fail_agreed(ExitCode::bad_data,
                fmt::format("the dictionary in {} has width {}, the rows of {} have {}",
                            in_quotes(judged.folder), dictionary.d, in_quotes(held_out(own.data)),
                            data.width()));
  const MetricReport report =
      evaluate(mesh, dictionary, judged.saved.normalization, data, {own.tokens, own.batch_size});
  nlohmann::ordered_json json = metrics_json(report);
  json["checkpoint"] = judged.folder;
  json["data"] = held_out(own.data);
  json["step"] = judged.saved.step;
  json["tokens"] = judged.saved.tokens;
  say(metrics_text(report));
  if (truth.defined()) json.update(judge_against_truth(mesh, dictionary, truth));
  if (!own.json.empty() && launch.facts().rank == 0) write_json(own.json, json);
  return 0;
}

}  // namespace megadict
