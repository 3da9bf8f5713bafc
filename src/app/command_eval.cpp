// megadict eval: every metric of a dictionary on held-out shards, on the mesh.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/dictionary_source.h"
#include "app/options.h"
#include "app/together.h"
#include "app/truth.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/mesh.h"
#include "comm/watchdog.h"
#include "eval/evaluate.h"
#include "eval/inference.h"
#include "io/json_file.h"
#include "model/saved.h"

namespace megadict {

namespace {

struct EvalOptions {
  std::string run, checkpoint, data, truth, json, latents, metrics, inference, weights = "last";
  int64_t tokens = 0, batch_size = 4096, peer_batch = 4096, top = 20;
  bool neighbours = true;
  int threads = 0;
  BootstrapOptions bootstrap;
  InferenceArgs codes;
  MeshConfig mesh;
};

std::vector<std::string> pursuit_names() {
  std::vector<std::string> names;
  for (const Pursuit& pursuit : all_pursuits()) names.emplace_back(pursuit.name);
  return names;
}

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
           {"eval.metrics", &own.metrics, "", "these alone, between commas"},
           {"eval.peer_batch", &own.peer_batch, "rows", "of the batches by which peers average",
            between(1, 1e7)},
           {"eval.resamples", &own.bootstrap.resamples, "",
            "of the documents, for confidence intervals; 0 = none", between(0, 1e6)},
           {"eval.resample_block", &own.bootstrap.block_rows, "rows",
            "of the blocks that are resampled instead; 0 = documents", between(0, 4e9)},
           {"eval.confidence", &own.bootstrap.confidence, "", "of the intervals",
            between(0.01, 0.9999)},
           {"eval.inference", &own.inference, "",
            fmt::format("codes by optimisation beside the encoder's, between commas: {}; each rank "
                        "then holds the whole decoder",
                        fmt::join(pursuit_names(), ","))},
           {"eval.inference_lambda", &own.codes.lambda, "",
            "of fista, lars, lars_refit and lca, for normalised rows; 0 = each one's that gives "
            "the "
            "encoder's L0",
            at_least(0)},
           {"eval.inference_rows", &own.codes.rows, "rows",
            "the first so many, dealt over all ranks", between(1, 1e9)},
           {"run.seed", &own.bootstrap.seed, "", "of the resampling", at_least(0)},
           {"latents", &own.latents, "", "also write what each latent does to this HDF5 file"},
           {"latents.top", &own.top, "rows", "on which a latent fires most", between(1, 1000)},
           {"latents.neighbours", &own.neighbours, "",
            "and its nearest decoder row: n_latents^2 width operations"},
           {"data.batch_size", &own.batch_size, "rows",
            "of a pass, at most a peers' batch; changes memory and speed alone", between(1, 1e9)},
           {"mesh.data", &own.mesh.data, "ranks", "parts of the batch; 0 = auto",
            between(0, 1048576)},
           {"mesh.feature", &own.mesh.feature, "ranks", "parts of the dictionary; 0 = auto",
            between(0, 1048576)},
           {"run.threads", &own.threads, "threads", "per rank; 0 = cpus / ranks that share them",
            between(0, 4096)},
           {"json", &own.json, "", "also write the numbers to this file"}},
      .required = {"run.dir", "data.path"}};
}

// The names in a list between commas. Exit 2 for one that is none of the `known`.
std::vector<std::string> listed_names(const char* field, const char* what, const std::string& list,
                                      const std::vector<std::string>& known) {
  std::vector<std::string> listed;
  for (size_t begin = 0; begin <= list.size() && !list.empty();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    listed.push_back(list.substr(begin, end - begin));
    begin = end + 1;
    if (std::find(known.begin(), known.end(), listed.back()) != known.end()) continue;
    const std::string near = nearest_name(listed.back(), known);
    fail_agreed(ExitCode::usage,
                fmt::format("{}: there is no {} {}; allowed: {}", field, what,
                            in_quotes(listed.back()), fmt::join(known, ", ")),
                near.empty() ? "" : fmt::format("did you mean '{}'?", near));
  }
  return listed;
}

// What --eval.inference and its companions ask for. Exit 2 for a method twice, and for a lambda
// that no method takes.
void read_inference(EvalOptions& own) {
  bool takes_lambda = false;
  auto& methods = own.codes.methods;
  for (const std::string& name :
       listed_names("eval.inference", "method", own.inference, pursuit_names())) {
    const Pursuit& pursuit = *std::find_if(all_pursuits().begin(), all_pursuits().end(),
                                           [&](const Pursuit& p) { return p.name == name; });
    if (std::find(methods.begin(), methods.end(), &pursuit) != methods.end())
      fail_agreed(ExitCode::usage,
                  fmt::format("eval.inference: {} is listed twice", in_quotes(name)));
    methods.push_back(&pursuit);
    takes_lambda |= pursuit.takes == PursuitTakes::lambda;
  }
  if (own.codes.lambda > 0 && !takes_lambda)
    fail_agreed(ExitCode::usage,
                fmt::format("eval.inference_lambda is given, and no method of eval.inference {} "
                            "takes one",
                            in_quotes(own.inference)),
                "fista, lars, lca do");
  own.codes.batch_rows = own.batch_size;
  if (own.tokens > 0) own.codes.rows = std::min(own.codes.rows, own.tokens);
}

MetricReport judge(const EvalOptions& own, const Mesh& mesh, const std::string& folder,
                   const SavedDictionary& saved, const ShardIndex& data) {
  LatentStatistics statistics(saved.dictionary.latents, own.latents.empty() ? 0 : own.top);
  EvaluateArgs args{own.tokens, own.batch_size, own.peer_batch, own.bootstrap, nullptr};
  if (!own.latents.empty()) args.latents = &statistics;
  const MetricReport report = evaluate(mesh, saved.dictionary, saved.normalization, data, args);
  if (own.latents.empty()) return report;
  const auto rows = static_cast<int64_t>(report["rows"]);
  write_latent_statistics(
      own.latents, mesh, saved.dictionary, statistics, data,
      {folder, held_out(own.data), rows, saved.normalization.scale, own.neighbours});
  say(fmt::format("wrote statistics of {} latents on {} rows to {}", saved.dictionary.n, rows,
                  own.latents));
  return report;
}

}  // namespace

std::string help_eval() {
  EvalOptions own;
  return help_text(options(own));
}

int run_eval(Launch& launch, const Args& args) {
  EvalOptions own;
  read_options(options(own), args);
  const std::vector<std::string> wanted =
      listed_names("eval.metrics", "metric", own.metrics, report_names());
  read_inference(own);
  start_watchdog({});
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  const Mesh mesh = make_mesh(launch.world(), own.mesh);
  SavedDictionary saved;
  ShardIndex data;
  at::Tensor truth;
  refuse_output_files(launch.world(), {own.json, own.latents});
  const std::string folder = dictionary_folder(own.checkpoint.empty() ? own.run : own.checkpoint,
                                               own.weights, launch.world());
  rank_zero_first(launch.world(), [&] {
    saved = load_shard(folder, own.weights, mesh.feature_size(), mesh.feature_index);
    data = ShardIndex::open(held_out(own.data));
    if (!own.truth.empty()) truth = read_truth(own.truth, saved.dictionary.d);
  });
  if (truth.defined()) refuse_deep_decoder(saved.dictionary, "eval.truth");
  refuse_other_shards(launch.world(), data, held_out(own.data));
  refuse_outputs_among(data, {own.json, own.latents});
  refuse_other_width(folder, saved.dictionary, held_out(own.data), data);
  MetricReport report = judge(own, mesh, folder, saved, data);
  if (!wanted.empty()) keep_only(report, wanted);
  nlohmann::ordered_json json = judgement_json(report, folder, held_out(own.data), saved);
  say(metrics_text(report));
  if (truth.defined()) json.update(judge_against_truth(mesh, saved.dictionary, truth));
  if (!own.codes.methods.empty()) {
    const InferenceReport codes =
        compare_inference(mesh, saved.dictionary, saved.normalization, data, own.codes);
    say(inference_text(codes));
    json["inference"] = inference_json(codes);
  }
  if (!own.json.empty() && launch.facts().rank == 0) write_json(own.json, json);
  return 0;
}

}  // namespace megadict
