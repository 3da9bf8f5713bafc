#include "model/saved.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "io/file.h"
#include "io/json_file.h"
#include "io/safetensors.h"
#include "io/staged_folder.h"
#include "model/activations.h"
#include "model/checkpoint_reader.h"
#include "model/formats.h"
#include "model/hidden.h"
#include "model/initialise.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

// The step of a folder "step_000001000"; -1 for any other name.
int64_t step_of_name(const std::string& name) {
  constexpr std::string_view kPrefix = "step_";
  if (!name.starts_with(kPrefix)) return -1;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto read = std::from_chars(name.data() + kPrefix.size(), end, step);
  return read.ec == std::errc() && read.ptr == end ? step : -1;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  if (folder_exists(folder))
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      names.push_back(entry.path().filename().string());
  return names;
}

// -1 where state.json says none.
int64_t step_in_state(const std::string& folder) {
  if (!file_exists(folder + "/state.json")) return -1;
  const std::string text = read_file(folder + "/state.json");
  if (nests_too_deep(text)) return -1;
  const auto state = nlohmann::json::parse(text, nullptr, false);
  if (!state.is_object() || !state.contains("step") || !state["step"].is_number_integer())
    return -1;
  return state["step"];
}

}  // namespace

std::vector<SavedStep> saved_steps(const std::string& run) {
  const std::string folder = run + "/checkpoints/";
  std::vector<SavedStep> found;
  for (const std::string& name : names_in(folder)) {
    const int64_t step = step_of_name(name);
    // The rename that gives the final name is the last thing a writer does.
    if (step >= 0 && folder_exists(folder + name)) found.push_back({step, folder + name});
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string newest_checkpoint(const std::string& run) {
  const std::vector<SavedStep> found = saved_steps(run);
  if (found.empty()) return "";
  std::string latest;
  if (file_exists(run + "/latest")) latest = read_file(run + "/latest");
  while (latest.ends_with('\n')) latest.pop_back();
  for (const SavedStep& saved : found)
    if (file_name(saved.folder) == latest) return saved.folder;
  return found.back().folder;
}

std::string newest_state(const std::string& run) {
  const std::string newest = newest_checkpoint(run), final = run + "/final";
  if (!file_exists(final + "/state.json")) return newest;
  // A run that went on, or back, after its end has left final/ behind.
  return newest.empty() || step_in_state(newest) == step_in_state(final) ? final : newest;
}

std::string find_checkpoint(const std::string& path) {
  if (file_exists(path + "/state.json") || foreign_format(path) != nullptr) return path;
  const std::string newest = newest_state(path);
  if (newest.empty())
    fail_agreed(ExitCode::usage,
                fmt::format("no dictionary at '{}': neither state.json, final/state.json nor "
                            "checkpoints/step_*/state.json is there",
                            path),
                "give a run folder, its final/, a folder of its checkpoints/, or an exported one");
  return newest;
}

namespace {

void read_weights(const CheckpointReader& reader, const std::string& prefix, Dictionary& to) {
  const Range latents = to.latents;
  reader.read_rows(prefix + "W_enc", latents, view_of(to.w_enc_ld));
  if (!to.tied()) reader.read_rows(prefix + "W_dec", latents, view_of(to.w_dec_ld));
  reader.read_rows(prefix + "b_enc", latents, view_of(to.b_enc_l));
  const auto extra = activation_named(to.config.activation).parameters;
  for (size_t i = 0; i < extra.size(); ++i)
    reader.read_rows(prefix + std::string(extra[i].name), latents, view_of(to.extra_l[i]));
  reader.read(prefix + "b_dec", view_of(to.b_dec_d));
  const auto hidden = hidden_parameters(to.config, to.d);
  for (size_t i = 0; i < hidden.size(); ++i)
    reader.read(prefix + hidden[i].name, view_of(to.hidden[i]));
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
  for (at::Tensor& extra : dictionary.extra_l)
    extra = extra.narrow(0, dictionary.latents.begin, dictionary.latents.size()).clone();
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
  const CheckpointState& state = reader.state();
  const Range latents = shard_of(reader.n(), parts, index);
  SavedDictionary out;
  out.dictionary =
      empty_dictionary(state.model, reader.n(), reader.d(), latents, latents.size(), at::kCPU);
  read_weights(reader, ema ? "ema." : "", out.dictionary);
  out.dictionary.threshold = state.threshold;
  out.normalization = reader.normalization();
  out.step = state.step;
  out.tokens = state.tokens;
  out.var_total = state.var_total;
  try {
    out.source_model = state.data.value("model", "");
    out.hook = state.data.value("hook", "");
    out.layer = state.data.value("layer", int64_t{-1});
  } catch (const nlohmann::json::exception& e) {
    fail(ExitCode::bad_data,
         fmt::format("'{}/state.json' is not a checkpoint's state: {}", folder, e.what()));
  }
  return out;
}

namespace {

nlohmann::ordered_json state_of(const SavedDictionary& saved, const std::string& part) {
  const Dictionary& dictionary = saved.dictionary;
  nlohmann::ordered_json out;
  out["format"] = kCheckpointFormat;
  out["step"] = saved.step;
  out["tokens"] = saved.tokens;
  out["n_latents"] = dictionary.n;
  out["d"] = dictionary.d;
  out["model"] = model_json(dictionary.config);
  if (activation_named(dictionary.config.activation).whole_batch)
    out["threshold"] = dictionary.threshold;
  out["seed"] = 0;
  out["var_total"] = saved.var_total > 0 ? saved.var_total : 1.0;  // nobody knows it
  out["normalize"] = {{"scale", saved.normalization.scale},
                      {"centred", !saved.normalization.mean.empty()}};
  out["data"] = {{"model", saved.source_model}, {"hook", saved.hook}, {"layer", saved.layer}};
  out["parts"] = {{{"file", part}, {"begin", 0}, {"end", dictionary.n}}};
  return out;
}

}  // namespace

void write_saved(const SavedDictionary& saved, const std::string& folder) {
  constexpr const char* kPart = "part_00_of_01.safetensors";
  const Dictionary& dictionary = saved.dictionary;
  StagedFolder making(folder);
  std::vector<TensorToWrite> tensors;
  SafetensorsMetadata metadata;
  const auto add = [&](const char* name, const at::Tensor& tensor, bool split) {
    tensors.push_back({name, tensor.sizes().vec(), view_of(tensor)});
    if (split) metadata[std::string(name) + ".latents"] = fmt::format("0:{}", dictionary.n);
  };
  add("W_enc", dictionary.w_enc_ld, true);
  if (!dictionary.tied()) add("W_dec", dictionary.w_dec_ld, true);
  add("b_enc", dictionary.b_enc_l, true);
  const auto extra = activation_named(dictionary.config.activation).parameters;
  for (size_t i = 0; i < extra.size(); ++i)
    add(std::string(extra[i].name).c_str(), dictionary.extra_l[i], true);
  add("b_dec", dictionary.b_dec_d, false);
  const auto hidden = hidden_parameters(dictionary.config, dictionary.d);
  for (size_t i = 0; i < hidden.size(); ++i)
    add(hidden[i].name.c_str(), dictionary.hidden[i], false);
  const std::vector<float>& mean = saved.normalization.mean;
  if (!mean.empty()) {
    const auto width = static_cast<int64_t>(mean.size());
    tensors.push_back({"normalize.mean", {width}, view_of(mean.data(), width)});
  }
  write_safetensors(making.path() + "/" + kPart, tensors, metadata);
  write_json(making.path() + "/state.json", state_of(saved, kPart));
  making.commit();
}

}  // namespace megadict
