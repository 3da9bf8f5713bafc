// megadict compare: how far dictionaries hold the same latents. One process.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "app/commands.h"
#include "app/dictionary_source.h"
#include "app/options.h"
#include "app/together.h"
#include "app/truth.h"
#include "base/error.h"
#include "base/log.h"
#include "eval/comparison.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/formats.h"

namespace megadict {

namespace {

constexpr size_t kMost = 8;  // dictionaries

struct CompareOptions {
  std::vector<std::string> paths = std::vector<std::string>(kMost);
  std::string data, json, weights = "last";
  int64_t tokens = 8192, batch_size = 4096;
  int threads = 0;
};

OptionSet options(CompareOptions& own) {
  OptionSet set = {
      .command = "compare",
      .summary = "Compares dictionaries: the first with each of the others.",
      .fields = {{"data.path", &own.data, "",
                  "shards; also match latents by their codes on the same rows (held out if any)"},
                 {"eval.tokens", &own.tokens, "rows", "of them, the first so many; 0 = all",
                  between(0, 1e15)},
                 {"data.batch_size", &own.batch_size, "rows", "of a pass", between(1, 1e9)},
                 {"weights", &own.weights, "", "of runs: the last ones or their average",
                  one_of({"last", "ema"})},
                 {"run.threads", &own.threads, "threads", "0 = all cpus", between(0, 4096)},
                 {"json", &own.json, "", "also write the numbers to this file"}}};
  constexpr const char* kNames[kMost] = {"A", "B", "C", "D", "E", "F", "G", "H"};
  for (size_t i = 0; i < kMost; ++i)
    set.positional.push_back({kNames[i], &own.paths[i], "",
                              "a run, a checkpoint, another tool's folder, one of `data synth`"});
  set.required = {"A", "B"};
  return set;
}

struct Compared {
  std::string path, folder;
  at::Tensor w_dec_nd;
  std::optional<SavedDictionary> saved;  // none: a planted dictionary, which has no encoder
};

Compared load(const std::string& path, const CompareOptions& own, Communicator& world) {
  if (file_exists(path + "/truth.safetensors")) return {path, path, read_truth(path, 0), {}};
  Compared out{path, dictionary_folder(path, own.weights, world), {}, {}};
  out.saved = load_shard(out.folder, own.weights);
  refuse_deep_decoder(out.saved->dictionary, fmt::format("{}: compare", in_quotes(path)));
  out.w_dec_nd = out.saved->dictionary.w_dec_ld.to(at::kFloat);
  return out;
}

nlohmann::ordered_json compare_codes(const Compared& a, const Compared& b, const Mesh& mesh,
                                     const ShardIndex& data, const CompareOptions& own) {
  const CodeMatch match =
      match_codes_of(mesh, a.saved->dictionary, a.saved->normalization, b.saved->dictionary,
                     b.saved->normalization, data, own.tokens, own.batch_size);
  say(code_match_text(match));
  return code_match_json(match);
}

nlohmann::ordered_json compare_pair(const Compared& a, const Compared& b) {
  say(fmt::format("\n{} ({} latents) with {} ({} latents)", a.path, a.w_dec_nd.size(0), b.path,
                  b.w_dec_nd.size(0)));
  const DictionaryScores scores = compare_dictionaries(a.w_dec_nd, b.w_dec_nd);
  say(scores_text(scores));
  const auto splitting = feature_splitting(a.w_dec_nd, b.w_dec_nd);
  say(splitting_text(splitting));
  nlohmann::ordered_json json = {{"a", a.folder}, {"b", b.folder}};
  json.update(scores_json(scores));
  json["splitting"] = splitting_json(splitting);
  return json;
}

nlohmann::ordered_json describe(const Compared& one) {
  const CosineHistogram histogram = pairwise_cosines(one.w_dec_nd);
  say(fmt::format("\n{}: cosines of pairs of its {} decoder rows, beside those of random rows",
                  one.path, one.w_dec_nd.size(0)));
  say(cosines_text(histogram));
  nlohmann::ordered_json json = {
      {"dictionary", one.folder}, {"n_latents", one.w_dec_nd.size(0)}, {"d", one.w_dec_nd.size(1)}};
  json["pairwise_cosines"] = cosines_json(histogram);
  return json;
}

void refuse_widths(const std::vector<Compared>& all) {
  for (const Compared& one : all)
    if (one.w_dec_nd.size(1) != all[0].w_dec_nd.size(1))
      fail_agreed(ExitCode::bad_data,
                  fmt::format("the dictionary in {} has width {}, that in {} has {}",
                              in_quotes(all[0].path), all[0].w_dec_nd.size(1), in_quotes(one.path),
                              one.w_dec_nd.size(1)),
                  "dictionaries of the same activations");
}

}  // namespace

std::string help_compare() {
  CompareOptions own;
  return help_text(options(own));
}

int run_compare(Launch& launch, const Args& args) {
  CompareOptions own;
  read_options(options(own), args);
  if (launch.facts().ranks > 1)
    fail_agreed(
        ExitCode::usage,
        fmt::format("megadict compare runs as one process, not as {} ranks", launch.facts().ranks));
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  refuse_output_files(launch.world(), {own.json});
  std::vector<Compared> all;
  for (const std::string& path : own.paths)
    if (!path.empty()) all.push_back(load(path, own, launch.world()));
  refuse_widths(all);
  std::optional<ShardIndex> data;
  if (!own.data.empty()) {
    data = ShardIndex::open(held_out(own.data));
    for (const Compared& one : all) {
      if (!one.saved)
        fail_agreed(ExitCode::usage,
                    fmt::format("{} is a planted dictionary and has no encoder: its codes cannot "
                                "be compared",
                                in_quotes(one.path)),
                    "leave out --data.path");
      refuse_other_width(one.folder, one.saved->dictionary, held_out(own.data), *data);
    }
  }
  const Mesh mesh = make_mesh(launch.world(), {});
  nlohmann::ordered_json json;
  for (const Compared& one : all) json["dictionaries"].push_back(describe(one));
  for (size_t i = 1; i < all.size(); ++i) {
    nlohmann::ordered_json pair = compare_pair(all[0], all[i]);
    if (data) pair.update(compare_codes(all[0], all[i], mesh, *data, own));
    json["pairs"].push_back(pair);
  }
  if (!own.json.empty()) write_json(own.json, json);
  return 0;
}

}  // namespace megadict
