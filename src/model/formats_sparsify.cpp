// sparsify folders: cfg.json and sae.safetensors; the folder's name is the
// hookpoint, and the folder above holds one such folder per hookpoint.
#include <fmt/format.h>

#include <filesystem>

#include "base/version.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/foreign_files.h"

namespace megadict {
namespace {

std::string config_path(const std::string& folder) {
  return folder + "/cfg.json";
}
std::string weights_path(const std::string& folder) {
  return folder + "/sae.safetensors";
}

constexpr Held kHeld[] = {{"topk", "topk"}};

// Its settings have no place for where a dictionary came from; the tensors' file has.
SafetensorsMetadata metadata_of(const PlainDictionary& folded, const ExportNote& note) {
  return {{"format", "pt"},
          {"megadict_version", std::string(version())},
          {"megadict_step", fmt::format("{}", folded.step)},
          {"megadict_tokens", fmt::format("{}", folded.tokens)},
          {"megadict_scale", std::string(name_of(note.scale))},
          {"megadict_normalize_scale", fmt::format("{}", note.normalize_scale)},
          {"model_name", folded.source_model},
          {"hook_name", folded.hook}};
}

void write(const PlainDictionary& folded, const ExportNote& note, const std::string& folder) {
  const nlohmann::ordered_json config = {
      {"activation", "topk"},
      {"expansion_factor", std::max<int64_t>(1, folded.n / folded.d)},
      {"normalize_decoder", true},
      {"num_latents", folded.n},
      {"k", folded.k},
      {"multi_topk", false},
      {"skip_connection", false},
      {"transcode", false},
      {"d_in", folded.d}};
  write_safetensors(
      weights_path(folder),
      {tensor_to_write("encoder.weight", folded.w_enc_nd),
       tensor_to_write("encoder.bias", folded.b_enc_n), tensor_to_write("W_dec", folded.w_dec_nd),
       tensor_to_write("b_dec", folded.b_dec_d)},
      metadata_of(folded, note));
  write_json(config_path(folder), config);
}

bool recognises(const std::string& folder) {
  return file_exists(config_path(folder)) && file_exists(weights_path(folder));
}

PlainDictionary read(const std::string& folder) {
  const ForeignConfig config(config_path(folder));
  const std::string activation = config.text_or("activation", "topk");
  if (activation != "topk")
    config.refuse(fmt::format("the activation '{}' has no counterpart here", activation),
                  "'topk' can be read");
  if (config.flag_or("transcode", false) || config.flag_or("skip_connection", false))
    config.refuse("a transcoder has no counterpart here");
  // Absent settings mean the defaults the dictionary was trained with.
  const int64_t d = config.size("d_in");
  const int64_t n =
      config.integer_or("num_latents", 0) != 0
          ? config.size("num_latents")
          : d * (config.has("expansion_factor") ? config.size("expansion_factor") : 32);
  config.refuse_null("k");
  const int64_t k = config.has("k") ? config.size("k") : 32;
  if (k > n) config.refuse("'k' is above the number of latents");
  const ForeignTensors file = open_tensors(weights_path(folder));
  expect_tensors(file, {"encoder.weight", "encoder.bias", "W_dec", "b_dec"});
  PlainDictionary plain =
      make_foreign(read_tensor(file, "encoder.weight", {n, d}), read_tensor(file, "W_dec", {n, d}),
                   read_tensor(file, "b_dec", {d}));
  plain.activation = "topk";
  plain.k = k;
  plain.b_enc_n = read_tensor(file, "encoder.bias", {n});
  const auto hook = file.texts.find("hook_name"), model = file.texts.find("model_name");
  plain.hook = hook != file.texts.end() && !hook->second.empty()
                   ? hook->second
                   : std::filesystem::path(folder).lexically_normal().filename().string();
  if (model != file.texts.end()) plain.source_model = model->second;
  plain.layer = layer_of_hook(plain.hook);
  return plain;
}

}  // namespace

const Format kSparsifyFormat = {
    "sparsify",
    "EleutherAI sparsify: cfg.json, sae.safetensors; topk; name the folder as the hook",
    kHeld,
    /*unit_rows=*/false,
    /*unit_only=*/false,
    kNoLeastThreshold,
    write,
    recognises,
    read};

}  // namespace megadict
