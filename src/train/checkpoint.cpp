#include "train/checkpoint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "comm/agree.h"
#include "io/file.h"
#include "io/json_file.h"
#include "io/safetensors.h"
#include "model/activations.h"
#include "model/checkpoint_reader.h"
#include "model/hidden.h"
#include "model/initialise.h"
#include "model/saved.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

// A tensor of the state under its name in the file. `split`: has a row per latent that this rank
// owns; otherwise it is the same on all ranks and part 0 holds it.
struct Named {
  std::string name;
  at::Tensor tensor;
  bool split;
};

std::vector<Named> tensors_of(const TrainState& state) {
  const Dictionary& d = state.dictionary;
  const auto own = [&](const at::Tensor& t) {
    return t.narrow(0, state.own.begin, state.own.size());
  };
  std::vector<Named> all = {{"W_enc", own(d.w_enc_ld), true},
                            {"b_enc", own(d.b_enc_l), true},
                            {"b_dec", d.b_dec_d, false},
                            {"tokens_since_fired", own(state.tokens_since_fired_l), true}};
  if (!d.tied()) all.push_back({"W_dec", own(d.w_dec_ld), true});
  const auto add_moments = [&](const char* name, const Moments& moments, bool split) {
    if (moments.m.defined()) all.push_back({std::string("moment1.") + name, moments.m, split});
    if (moments.v.defined()) all.push_back({std::string("moment2.") + name, moments.v, split});
  };
  add_moments("W_enc", state.w_enc, true);
  add_moments("W_dec", state.w_dec, true);
  add_moments("b_enc", state.b_enc, true);
  add_moments("b_dec", state.b_dec, false);
  const auto extra = activation_named(d.config.activation).parameters;
  for (size_t i = 0; i < extra.size(); ++i) {
    const std::string name(extra[i].name);
    all.push_back({name, own(d.extra_l[i]), true});
    add_moments(name.c_str(), state.extra[i], true);
    if (!state.ema_extra.empty()) all.push_back({"ema." + name, state.ema_extra[i], true});
  }
  const auto hidden = hidden_parameters(d.config, d.d);
  for (size_t i = 0; i < hidden.size(); ++i) {
    all.push_back({hidden[i].name, d.hidden[i], false});
    add_moments(hidden[i].name.c_str(), state.hidden[i], false);
    if (!state.ema_hidden.empty())
      all.push_back({"ema." + hidden[i].name, state.ema_hidden[i], false});
  }
  if (state.last_step_l.defined()) all.push_back({"last_step", state.last_step_l, true});
  if (state.ema_w_enc.defined()) {
    all.push_back({"ema.W_enc", state.ema_w_enc, true});
    all.push_back({"ema.b_enc", state.ema_b_enc, true});
    all.push_back({"ema.b_dec", state.ema_b_dec, false});
    if (!d.tied()) all.push_back({"ema.W_dec", state.ema_w_dec, true});
  }
  return all;
}

// Part numbers follow the latents: feature index first, then data index.
int part_of(const Mesh& mesh, int feature_index, int data_index) {
  return feature_index * mesh.data_size() + data_index;
}

std::string part_name(int part, int parts) {
  return fmt::format("part_{:02}_of_{:02}.safetensors", part, parts);
}

Range part_latents(const Mesh& mesh, int64_t n, int feature_index, int data_index) {
  const Range shard = shard_of(n, mesh.feature_size(), feature_index);
  const Range own = own_rows(shard.size(), mesh.data_size(), data_index);
  return {shard.begin + own.begin, shard.begin + own.end};
}

void write_part(const Mesh& mesh, const std::string& folder, const TrainState& state) {
  const int part = part_of(mesh, mesh.feature_index, mesh.data_index);
  const Range latents = part_latents(mesh, state.dictionary.n, mesh.feature_index, mesh.data_index);
  std::vector<at::Tensor> on_cpu;  // owns what the views below point to
  std::vector<TensorToWrite> tensors;
  SafetensorsMetadata metadata = {{"format", "megadict"}};
  std::vector<Named> named = tensors_of(state);
  if (!state.normalization.mean.empty())
    named.push_back({"normalize.mean", at::tensor(state.normalization.mean), false});
  for (const Named& item : named) {
    if (!item.split && part != 0) continue;
    on_cpu.push_back(item.tensor.to(at::kCPU).contiguous());
    const at::Tensor& tensor = on_cpu.back();
    tensors.push_back({item.name, tensor.sizes().vec(), view_of(tensor)});
    if (item.split)
      metadata[item.name + ".latents"] = fmt::format("{}:{}", latents.begin, latents.end);
  }
  write_safetensors(folder + "/" + part_name(part, mesh.world->size()), tensors, metadata);
}

// Every rank's, in the order of the parts. Collective over world.
std::vector<Screen::Memory> screens_of_parts(const Mesh& mesh, const TrainState& state) {
  const double mine[2] = {state.screen.window, state.screen.relative_threshold};
  const int ranks = mesh.world->size();
  std::vector<double> all(static_cast<size_t>(2 * ranks));
  mesh.world->all_gather(view_of(mine, 2), view_of(all.data(), 2 * ranks), "screens");
  std::vector<Screen::Memory> parts(static_cast<size_t>(ranks));
  for (int d = 0; d < mesh.data_size(); ++d)
    for (int f = 0; f < mesh.feature_size(); ++f) {
      const auto rank = static_cast<size_t>(d * mesh.feature_size() + f);
      parts[static_cast<size_t>(part_of(mesh, f, d))] = {all[2 * rank],
                                                         static_cast<float>(all[2 * rank + 1])};
    }
  return parts;
}

// On the mesh that wrote it each rank's own; on others the widest window, and no guess.
Screen::Memory saved_screen(const Mesh& mesh, const CheckpointState& saved) {
  const std::vector<double>& windows = saved.screen_windows;
  if (windows.empty()) return {};
  if (saved.mesh != mesh.name() || windows.size() != static_cast<size_t>(mesh.world->size()))
    return {*std::max_element(windows.begin(), windows.end()), 0};
  const auto part = static_cast<size_t>(part_of(mesh, mesh.feature_index, mesh.data_index));
  return {windows[part], static_cast<float>(saved.screen_thresholds[part])};
}

nlohmann::ordered_json state_json(const Mesh& mesh, const DataIdentity& data, uint64_t seed,
                                  const TrainState& state,
                                  const std::vector<Screen::Memory>& screens) {
  const ModelConfig& model = state.dictionary.config;
  nlohmann::ordered_json out;
  out["format"] = kCheckpointFormat;
  out["step"] = state.step;
  out["tokens"] = state.tokens;
  if (state.resampled_at >= 0) out["resampled_at"] = state.resampled_at;
  out["n_latents"] = state.dictionary.n;
  out["d"] = state.dictionary.d;
  out["model"] = model_json(model);
  if (activation_named(model.activation).whole_batch) {
    const double running = state.dictionary.threshold;
    out["threshold"] = state.judged_threshold > 0 ? state.judged_threshold : running;
    out["threshold_average"] = running;
  }
  out["seed"] = seed;
  out["var_total"] = state.var_total;
  out["normalize"] = {{"scale", state.normalization.scale},
                      {"centred", !state.normalization.mean.empty()}};
  out["data"] = {{"fingerprint", data.fingerprint},
                 {"rows", data.rows},
                 {"dtype", data.dtype},
                 {"model", data.model},
                 {"hook", data.hook},
                 {"tokenizer", data.tokenizer},
                 {"layer", data.layer}};
  out["mesh"] = mesh.name();
  for (int f = 0; f < mesh.feature_size(); ++f)
    for (int d = 0; d < mesh.data_size(); ++d) {
      const Range latents = part_latents(mesh, state.dictionary.n, f, d);
      out["parts"].push_back({{"file", part_name(part_of(mesh, f, d), mesh.world->size())},
                              {"begin", latents.begin},
                              {"end", latents.end}});
    }
  const bool screened = std::any_of(screens.begin(), screens.end(),
                                    [](const auto& one) { return one != Screen::Memory{}; });
  for (const Screen::Memory& screen : screens) {
    if (!screened) break;
    out["screen"]["windows"].push_back(screen.window);
    out["screen"]["thresholds"].push_back(screen.relative_threshold);
  }
  return out;
}

void refuse_skipped_rows(const Mesh& mesh, const TrainState& state) {
  int64_t skipped = state.row_skipped ? 1 : 0;
  mesh.world->all_reduce(view_of(&skipped, 1), ReduceOp::max, "checkpoint vote");
  if (skipped)
    throw Error(
        ExitCode::diverged,
        fmt::format("step {}: a gradient was not finite; no checkpoint is written", state.step),
        "resume the last checkpoint with a lower optim.lr", true);
}

void refuse_other_data(const std::string& folder, int64_t width, const nlohmann::json& saved,
                       const DataIdentity& now) {
  if (width != now.width)
    fail_agreed(ExitCode::usage, fmt::format("'{}' was trained on rows of width {}, the data have "
                                             "width {}",
                                             folder, width, now.width));
  const auto differs = [&](const char* name, const auto& value) {
    if (saved.at(name) != nlohmann::json(value))
      fail_agreed(ExitCode::usage,
                  fmt::format("'{}' was trained on other data: {} was {}, now it is {}", folder,
                              name, saved.at(name).dump(), nlohmann::json(value).dump()),
                  "resume with the data of the run, or start anew with --model.init_from");
  };
  differs("rows", now.rows);
  differs("dtype", now.dtype);
  differs("model", now.model);
  differs("hook", now.hook);
  differs("fingerprint", now.fingerprint);
}

// A run's fixed settings do not change: where the two files differ, they are of two runs.
void refuse_mixed_runs(const std::string& folder, const CheckpointState& saved,
                       const RunIdentity& run) {
  const auto differs = [&](const char* name, const auto& there, const auto& here) {
    if (there != here)
      fail_agreed(ExitCode::bad_data,
                  fmt::format("'{}/state.json' and '{}' are of different runs: {} is {} and {}",
                              folder, run.config_path, name, there, here));
  };
  differs("seed", saved.seed, run.seed);
  differs("model.encoder", saved.model.encoder, run.model.encoder);
  differs("model.activation", saved.model.activation, run.model.activation);
  differs("model.decoder", saved.model.decoder, run.model.decoder);
  differs("model.k", saved.model.k, run.model.k);
  if (has_front(run.model)) differs("model.hidden", saved.model.hidden, run.model.hidden);
  if (has_back(run.model))
    differs("model.decoder_norm", saved.model.decoder_norm, run.model.decoder_norm);
  differs("model.n_latents", saved.model.n_latents, run.model.n_latents);
}

void read_tensor(const CheckpointReader& reader, const Named& item, Range own, at::Tensor& to) {
  // Straight to where it belongs, if that is memory of the host.
  at::Tensor host = to.is_cpu() ? to : at::empty(to.sizes(), to.options().device(at::kCPU));
  if (item.split)
    reader.read_rows(item.name, own, view_of(host));
  else
    reader.read(item.name, view_of(host));
  if (!host.is_same(to)) to.copy_(host);
}

// Weights and counters of the whole shard; optimiser state of the owned rows only.
void read_state(const CheckpointReader& reader, TrainState& state) {
  Dictionary& d = state.dictionary;
  const Range own{d.latents.begin + state.own.begin, d.latents.begin + state.own.end};
  std::vector<Named> whole = {{"W_enc", d.w_enc_ld, true},
                              {"b_enc", d.b_enc_l, true},
                              {"tokens_since_fired", state.tokens_since_fired_l, true}};
  if (!d.tied()) whole.push_back({"W_dec", d.w_dec_ld, true});
  const auto extra = activation_named(d.config.activation).parameters;
  for (size_t i = 0; i < extra.size(); ++i)
    whole.push_back({std::string(extra[i].name), d.extra_l[i], true});
  for (Named& item : whole) read_tensor(reader, item, d.latents, item.tensor);
  const auto is_whole = [&](const Named& item) {
    return std::any_of(whole.begin(), whole.end(),
                       [&](const Named& other) { return other.name == item.name; });
  };
  for (Named& item : tensors_of(state))
    if (!is_whole(item)) read_tensor(reader, item, own, item.tensor);
}

}  // namespace

namespace {

void remove_checkpoint(const std::string& folder) {
  // Renamed first: one that was removed in part would look like a damaged checkpoint.
  rename_durably(folder, folder + ".tmp");
  std::filesystem::remove_all(folder + ".tmp");
}

// A run that went back to an earlier step has left them.
void remove_later(const std::string& run, int64_t step) {
  for (const SavedStep& saved : saved_steps(run))
    if (saved.step > step) remove_checkpoint(saved.folder);
}

}  // namespace

void write_checkpoint(const Mesh& mesh, const std::string& run, const std::string& folder,
                      const DataIdentity& data, uint64_t seed, const TrainState& state) {
  refuse_skipped_rows(mesh, state);
  const std::vector<Screen::Memory> screens = screens_of_parts(mesh, state);
  const std::string name = fmt::format("step_{:09}", state.step);
  const std::string target = folder.empty() ? run + "/checkpoints/" + name : folder;
  const std::string temporary = target + ".tmp";
  agree(*mesh.world, [&] {
    if (mesh.world->rank() != 0) return;
    std::filesystem::remove_all(temporary);
    make_folders(temporary);
  });
  mesh.world->barrier("checkpoint folder");
  agree(*mesh.world, [&] { write_part(mesh, temporary, state); });
  mesh.world->barrier("checkpoint parts");
  agree(*mesh.world, [&] {
    if (mesh.world->rank() != 0) return;
    write_json(temporary + "/state.json", state_json(mesh, data, seed, state, screens));
    sync_folder(temporary);
    // First the pointer: while it names nothing, the highest step counts, so none may be higher.
    if (folder.empty()) {
      remove_later(run, state.step);
      write_file_atomic(run + "/latest", name + "\n");
    }
    if (folder_exists(target)) {  // final/ of an earlier end, or a step that is done again
      std::filesystem::remove_all(target + ".old");
      rename_durably(target, target + ".old");
    }
    rename_durably(temporary, target);
    std::filesystem::remove_all(target + ".old");
  });
  mesh.world->barrier("checkpoint committed");
}

namespace {

// "step_000000100.tmp" and what it replaced, or "latest.tmp-1f0a" of an AtomicFile; nothing that is
// not a run's own.
bool is_unfinished(const std::string& name) {
  const size_t at = std::min(name.rfind(".tmp"), name.rfind(".old"));
  if (at == std::string::npos) return false;
  const std::string whole = name.substr(0, at), rest = name.substr(at + 4);
  if (rest.empty()) return whole.starts_with("step_") || whole == "final";
  const bool numbered =
      rest[0] == '-' && rest.find_first_not_of("0123456789abcdef", 1) == std::string::npos;
  constexpr std::string_view kFiles[] = {
      "latest",    "metrics.jsonl",      "config.json", "env.json",  "ranks.txt",
      "eval.json", "communication.json", "point.json",  "sweep.csv", "sweep.json"};
  return numbered && std::find(std::begin(kFiles), std::end(kFiles), whole) != std::end(kFiles);
}

}  // namespace

void remove_unfinished(const std::string& run) {
  for (const std::string& folder : {run, run + "/checkpoints"}) {
    if (!folder_exists(folder)) continue;
    for (const std::string& path : list_files(folder, ""))
      if (is_unfinished(file_name(path))) std::filesystem::remove_all(path);
  }
}

int64_t milestone_of(int64_t step, double ratio) {
  int64_t exponent = 0;
  // Not by logarithms, which put 1000 below 10^3.
  for (double power = ratio; power <= static_cast<double>(step); power *= ratio) ++exponent;
  return exponent;
}

void prune_checkpoints(const std::string& run, const CheckpointConfig& config) {
  remove_unfinished(run);
  const std::vector<SavedStep> saved = saved_steps(run);
  const size_t kept = std::min(saved.size(), static_cast<size_t>(config.keep));
  // What is kept now is the first of its milestone later, too, whatever is removed.
  const auto is_milestone = [&](size_t i) {
    if (config.keep_ratio == 0) return false;
    return i == 0 || milestone_of(saved[i].step, config.keep_ratio) !=
                         milestone_of(saved[i - 1].step, config.keep_ratio);
  };
  for (size_t i = 0; i < saved.size() - kept; ++i)
    if (!is_milestone(i)) remove_checkpoint(saved[i].folder);
}

void read_checkpoint(const Mesh& mesh, const std::string& folder, const RunIdentity& run,
                     const DataIdentity& data, const OptimConfig& optim, at::Device device,
                     TrainState& state) {
  const CheckpointReader reader(folder);
  const CheckpointState& saved = reader.state();
  refuse_mixed_runs(folder, saved, run);
  try {
    refuse_other_data(folder, reader.d(), saved.data, data);
  } catch (const nlohmann::json::exception& e) {
    fail(ExitCode::bad_data,
         fmt::format("'{}/state.json' is not a checkpoint's state: {}", folder, e.what()));
  }
  const Range latents = shard_of(reader.n(), mesh.feature_size(), mesh.feature_index);
  const int64_t block = ceil_div(latents.size(), mesh.data_size());
  state.dictionary = empty_dictionary(run.model, reader.n(), reader.d(), latents,
                                      block * mesh.data_size(), device);
  const bool with_ema = optim.ema > 0;
  reset_optimiser(mesh, optimiser_named(optim.name), with_ema, state);
  state.step = saved.step;
  state.tokens = saved.tokens;
  state.resampled_at = saved.resampled_at;
  state.var_total = saved.var_total;
  state.normalization = reader.normalization();
  state.dictionary.threshold = saved.threshold_average;
  state.screen = saved_screen(mesh, saved);
  if (with_ema && !reader.has("ema.W_enc"))
    fail_agreed(ExitCode::usage,
                fmt::format("'{}' holds no averaged weights, but optim.ema is set", folder),
                "resume without optim.ema");
  read_state(reader, state);
}

}  // namespace megadict
