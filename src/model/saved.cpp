#include "model/saved.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "io/file.h"
#include "model/checkpoint_reader.h"
#include "model/formats.h"
#include "model/initialise.h"
#include "model/tensor_views.h"

namespace megadict {

std::string newest_checkpoint(const std::string& run) {
  const std::string folder = run + "/checkpoints";
  std::vector<std::string> found;
  if (folder_exists(folder))
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      // The rename that gives the final name is the last thing a writer does: what has it and is
      // not whole was damaged later, and whoever reads it says so.
      if (name.starts_with("step_") && !name.ends_with(".tmp") && entry.is_directory())
        found.push_back(entry.path().string());
    }
  return found.empty() ? "" : *std::max_element(found.begin(), found.end());
}

std::string find_checkpoint(const std::string& path) {
  if (file_exists(path + "/state.json") || foreign_format(path) != nullptr) return path;
  if (file_exists(path + "/final/state.json")) return path + "/final";
  const std::string newest = newest_checkpoint(path);
  if (newest.empty())
    fail_agreed(ExitCode::usage,
                fmt::format("no dictionary at '{}': neither state.json, final/state.json nor "
                            "checkpoints/step_*/state.json is there",
                            path),
                "give a run folder, its final/, a folder of its checkpoints/, or an exported one");
  return newest;
}

namespace {

ModelConfig model_of(const nlohmann::json& state) {
  const auto& saved = state.at("model");
  ModelConfig model;
  model.encoder = saved.at("encoder");
  model.activation = saved.at("activation");
  model.decoder = saved.at("decoder");
  model.k = saved.at("k");
  model.n_latents = state.at("n_latents");
  return model;
}

void read_weights(const CheckpointReader& reader, const std::string& prefix, Dictionary& to) {
  const Range latents = to.latents;
  reader.read_rows(prefix + "W_enc", latents, view_of(to.w_enc_ld));
  if (!to.tied()) reader.read_rows(prefix + "W_dec", latents, view_of(to.w_dec_ld));
  reader.read_rows(prefix + "b_enc", latents, view_of(to.b_enc_l));
  reader.read(prefix + "b_dec", view_of(to.b_dec_d));
}

[[noreturn]] void refuse_average(const std::string& folder) {
  fail_agreed(ExitCode::usage, fmt::format("'{}' holds no averaged weights", folder),
              "train with --optim.ema, or use --weights last");
}

// These files are read whole by every rank, which then keeps its share.
SavedDictionary load_foreign_shard(const std::string& folder, int64_t parts, int64_t index) {
  SavedDictionary out = load_foreign(folder);
  Dictionary& dictionary = out.dictionary;
  dictionary.latents = shard_of(dictionary.n, parts, index);
  if (parts == 1) return out;
  for (at::Tensor* tensor : {&dictionary.w_enc_ld, &dictionary.w_dec_ld, &dictionary.b_enc_l})
    *tensor = tensor->narrow(0, dictionary.latents.begin, dictionary.latents.size()).clone();
  return out;
}

}  // namespace

SavedDictionary load_saved(const std::string& folder, const std::string& weights, int64_t parts,
                           int64_t index) {
  const bool ema = weights == "ema";
  if (foreign_format(folder) != nullptr) {
    if (ema) refuse_average(folder);
    return load_foreign_shard(folder, parts, index);
  }
  const CheckpointReader reader(folder);
  if (ema && !reader.has("ema.W_enc")) refuse_average(folder);
  SavedDictionary out;
  try {
    const nlohmann::json& state = reader.state();
    out.dictionary = empty_dictionary(model_of(state), reader.n(), reader.d(),
                                      shard_of(reader.n(), parts, index),
                                      shard_of(reader.n(), parts, index).size(), at::kCPU);
    read_weights(reader, ema ? "ema." : "", out.dictionary);
    out.normalization.scale = state.at("normalize").at("scale");
    if (reader.has("normalize.mean")) {
      out.normalization.mean.resize(static_cast<size_t>(reader.d()));
      reader.read("normalize.mean", view_of(out.normalization.mean.data(), reader.d()));
    }
    out.step = state.at("step");
    out.tokens = state.at("tokens");
    out.var_total = state.at("var_total");
    const auto& data = state.at("data");
    out.source_model = data.value("model", "");
    out.hook = data.value("hook", "");
    out.layer = data.value("layer", int64_t{-1});
  } catch (const nlohmann::json::exception& e) {
    fail(ExitCode::bad_data,
         fmt::format("'{}/state.json' is not a checkpoint's state: {}", folder, e.what()));
  }
  return out;
}

}  // namespace megadict
