// megadict export: a dictionary in another tool's layout (model/formats.h). One process.
#include <fmt/format.h>

#include "app/commands.h"
#include "app/dictionary_source.h"
#include "app/options.h"
#include "base/error.h"
#include "base/log.h"
#include "data/shard_index.h"
#include "eval/calibrate.h"
#include "model/activations.h"
#include "model/formats.h"
#include "model/saved.h"

namespace megadict {

namespace {

struct ExportOptions {
  std::string run, checkpoint, format, out, scale = "unit", weights = "last", calibrate;
  int64_t calibrate_rows = 0;
};

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const Format& format : all_formats()) names.emplace_back(format.name);
  return names;
}

OptionSet options(ExportOptions& own) {
  return {
      .command = "export",
      .summary = "Writes a dictionary for another tool: it takes raw rows and returns raw rows.",
      .fields = {{"run.dir", &own.run, "", "folder of the run, or of another tool's dictionary"},
                 {"checkpoint", &own.checkpoint, "", "this one instead of the newest weights"},
                 {"format", &own.format, "", "the tool", one_of(format_names())},
                 {"out", &own.out, "", "folder to make"},
                 {"scale", &own.scale, "",
                  "a data scale s goes into the latents (z / s) or into the weights",
                  one_of({"unit", "trained"})},
                 {"weights", &own.weights, "", "the last ones or their average",
                  one_of({"last", "ema"})},
                 {"calibrate", &own.calibrate, "",
                  "shards, held out best: topk and batchtopk get a threshold that gives k on them"},
                 {"calibrate_rows", &own.calibrate_rows, "rows", "the first so many; 0 = all",
                  between(0, 1e9)}},
      .required = {"run.dir", "format", "out"}};
}

// Rows are encoded alone from here on: batchtopk's threshold in place of any k.
void set_threshold(const ExportOptions& own, const std::string& folder, SavedDictionary& saved) {
  Dictionary& dictionary = saved.dictionary;
  if (!activation_named(dictionary.config.activation).has_k)
    fail_agreed(ExitCode::usage, fmt::format("--calibrate with the activation {}, which has no k",
                                             dictionary.config.activation));
  const std::string path = held_out(own.calibrate);
  const ShardIndex data = ShardIndex::open(path);
  refuse_other_width(folder, dictionary, path, data);
  const Calibration found = calibrate(dictionary, saved.normalization, data, own.calibrate_rows);
  say(fmt::format("threshold {:.6g} on {} rows of {}: l0 {:.4f} beside k {}", found.threshold,
                  found.rows, path, found.l0, dictionary.config.k));
  dictionary.config.activation = "batchtopk";
  dictionary.threshold = found.threshold;
}

// What sae-bench's loaders ask of a folder of dictionary_learning.
void note_unknown_source(const std::string& model, int64_t layer, const ExportOptions& own) {
  if (own.format != "dictionary_learning" || (!model.empty() && layer >= 0)) return;
  note(fmt::format(
      "note: the rows' model or layer is unknown, so 'lm_name' or 'layer' in '{}/config.json' is "
      "empty, with which sae-bench's loaders fail. hint: write them there, or give the rows "
      "theirs: "
      "megadict data import --model NAME --layer N",
      own.out));
}

}  // namespace

std::string help_export() {
  ExportOptions own;
  return help_text(options(own));
}

int run_export(Launch& launch, const Args& args) {
  ExportOptions own;
  read_options(options(own), args);
  if (launch.facts().ranks > 1)
    fail_agreed(ExitCode::usage, fmt::format("megadict export runs as one process, not as {} ranks",
                                             launch.facts().ranks));
  if (own.calibrate_rows > 0 && own.calibrate.empty())
    fail_agreed(ExitCode::usage, "calibrate_rows needs --calibrate SHARDS");
  const std::string folder = find_checkpoint(own.checkpoint.empty() ? own.run : own.checkpoint);
  const Format& format = format_named(own.format);
  const ExportScale scale = export_scale_named(own.scale);
  std::string model;
  int64_t layer = -1;
  if (own.weights == "last" && foreign_format(folder) != nullptr) {
    // From one tool to another, also what training has no model of.
    if (!own.calibrate.empty())
      fail_agreed(ExitCode::usage,
                  fmt::format("calibrate: {} is another tool's folder", in_quotes(folder)),
                  "megadict import first");
    PlainDictionary plain = load_plain(folder);
    model = plain.source_model;
    layer = plain.layer;
    export_dictionary(std::move(plain), format, scale, own.out);
  } else {
    SavedDictionary saved = load_saved(folder, own.weights);
    if (!own.calibrate.empty()) set_threshold(own, folder, saved);
    model = saved.source_model;
    layer = saved.layer;
    export_dictionary(std::move(saved), format, scale, own.out);
  }
  say(fmt::format("wrote {} as {} to {}", folder, own.format, own.out));
  note_unknown_source(model, layer, own);
  return 0;
}

}  // namespace megadict
