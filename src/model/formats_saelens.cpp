// SAELens folders: cfg.json and sae_weights.safetensors.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "base/version.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/foreign_files.h"

namespace megadict {
namespace {

// Loaders decide by this version how to read the settings; 6.54.12 is the one tested.
constexpr const char* kSaelensVersion = "6.54.12";

std::string config_path(const std::string& folder) {
  return folder + "/cfg.json";
}
std::string weights_path(const std::string& folder) {
  return folder + "/sae_weights.safetensors";
}

constexpr Held kHeld[] = {{"topk", "topk"},         {"relu", "relu"},   {"batchtopk", "jumprelu"},
                          {"jumprelu", "jumprelu"}, {"gated", "gated"}, {"prolu", "jumprelu"}};

nlohmann::ordered_json text_or_null(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
}

// Facts nobody recorded are null: a guess would be believed.
nlohmann::ordered_json metadata_of(const PlainDictionary& folded, const ExportNote& note,
                                   const std::string& training_architecture) {
  return {{"sae_lens_version", kSaelensVersion},
          {"sae_lens_training_version", nullptr},
          {"model_name", text_or_null(folded.source_model)},
          {"hook_name", text_or_null(folded.hook)},
          {"hook_head_index", nullptr},
          {"context_size", nullptr},
          {"prepend_bos", nullptr},
          {"seqpos_slice", nlohmann::ordered_json::array({nullptr})},
          {"dataset_path", nullptr},
          {"model_class_name", "HookedTransformer"},
          {"model_from_pretrained_kwargs", nlohmann::ordered_json::object()},
          {"neuronpedia_id", nullptr},
          {"training_architecture", training_architecture},
          {"megadict_version", version()},
          {"megadict_step", folded.step},
          {"megadict_tokens", folded.tokens},
          {"megadict_scale", name_of(note.scale)},
          {"megadict_normalize_scale", note.normalize_scale}};
}

// relu is called "standard" there.
std::string architecture_of(const std::string& activation) {
  return activation == "relu" ? "standard" : activation;
}

void write(const PlainDictionary& folded, const ExportNote& note, const std::string& folder) {
  nlohmann::ordered_json config = {{"architecture", architecture_of(folded.activation)},
                                   {"d_in", folded.d},
                                   {"d_sae", folded.n},
                                   {"dtype", "float32"},
                                   {"device", "cpu"},
                                   {"apply_b_dec_to_input", true},
                                   {"normalize_activations", "none"},
                                   {"reshape_activations", "none"}};
  if (folded.activation == "topk") {
    config["k"] = folded.k;
    config["rescale_acts_by_decoder_norm"] = false;
  }
  config["metadata"] = metadata_of(folded, note, architecture_of(note.activation));
  if (folded.activation != "topk" && folded.k > 0) config["metadata"]["megadict_k"] = folded.k;
  const at::Tensor w_enc_dn = folded.w_enc_nd.t().contiguous();
  std::vector<TensorToWrite> tensors = {tensor_to_write("W_enc", w_enc_dn),
                                        tensor_to_write("W_dec", folded.w_dec_nd),
                                        tensor_to_write("b_dec", folded.b_dec_d)};
  for (const LatentTensor& tensor : latent_tensors(folded.activation))
    tensors.push_back(tensor_to_write(std::string(tensor.name), folded.*tensor.member));
  write_safetensors(weights_path(folder), tensors);
  write_json(config_path(folder), config);
}

bool recognises(const std::string& folder) {
  return file_exists(config_path(folder)) && file_exists(weights_path(folder));
}

struct Kind {
  std::string activation;
  int64_t k = 0;
};

// A batchtopk's k may be a fraction there.
int64_t k_of(const ForeignConfig& config, const std::string& architecture) {
  if (architecture == "topk") return config.size("k");
  const double k = std::round(config.number("k"));
  if (!(k >= 1) || k > kMostLatents) config.refuse(fmt::format("'k' is {}, not a size", k));
  return static_cast<int64_t>(k);
}

// Nothing but our own export says it; 0 = unknown, and needed by nobody who has a threshold.
int64_t k_in_metadata(const ForeignConfig& config) {
  const ForeignConfig metadata = config.object_or_empty("metadata");
  return metadata.has("megadict_k") ? metadata.size("megadict_k") : 0;
}

// batchtopk as it is trained: one threshold, as a scalar of its own name, compared with h |w_dec|.
bool is_training_form(const std::string& architecture) {
  return architecture == "batchtopk";
}

// Before version 6 a topk file said "standard" and named its activation.
Kind kind_of(const ForeignConfig& config) {
  config.refuse_null("architecture");
  const std::string architecture = config.text_or("architecture", "standard");
  if ((architecture == "topk" || is_training_form(architecture)) && config.has("k"))
    return {architecture, k_of(config, architecture)};
  if (architecture == "jumprelu") return {"jumprelu", k_in_metadata(config)};
  if (architecture == "gated") return {"gated", 0};
  const std::string activation =
      config.text_or("activation_fn", config.text_or("activation_fn_str", "relu"));
  const bool known = architecture == "standard" || architecture == "topk";
  if (known && (architecture == "topk" || activation == "topk"))
    return {"topk", config.object_or_empty("activation_fn_kwargs").size("k")};
  if (known && activation == "relu" && config.has("k"))
    config.refuse("'k' beside the activation 'relu'");
  if (known && activation == "relu") return {"relu", 0};
  config.refuse(known ? fmt::format("the activation '{}' has no counterpart here", activation)
                      : fmt::format("the architecture '{}' has no counterpart here", architecture),
                "'standard' (relu), 'topk', 'batchtopk', 'jumprelu' and 'gated' can be read");
}

// The factor on x that a training checkpoint keeps beside its weights; elsewhere it is folded in.
double unfolded_scale(const std::string& folder) {
  const std::string path = folder + "/activation_scaler.json";
  if (!file_exists(path)) return 0;
  const ForeignConfig scaler(path);
  if (scaler.flag_or("has_whitening", false))
    scaler.refuse("whitened activations have no counterpart here",
                  "save the inference form, where SAELens folds the whitening in");
  return scaler.has("scaling_factor") ? scaler.number("scaling_factor") : 0;
}

Normalization normalization_of(const ForeignConfig& config, const std::string& folder) {
  Normalization normalization;
  const double scale = unfolded_scale(folder);
  if (scale > 0) normalization.scale = scale;
  const std::string kind = config.is_text("normalize_activations")
                               ? config.text_or("normalize_activations", "none")
                           : config.flag_or("normalize_activations", false)
                               ? "expected_average_only_in"  // how old files say it
                               : "none";
  if (kind == "expected_average_only_in") {
    if (scale <= 0)
      warn(
          fmt::format("'{}' says expected_average_only_in without a factor: taken as folded in, as "
                      "SAELens does",
                      config.path()));
  } else if (kind != "none") {
    config.refuse(fmt::format("normalize_activations '{}' has no counterpart here", kind),
                  "rows can be scaled by one number and shifted, not normalised one by one");
  }
  return normalization;
}

// The activation's own tensors, under the names that SAELens gives them.
void read_latent_tensors(const ForeignTensors& file, PlainDictionary& plain, bool training_form) {
  for (const LatentTensor& tensor : latent_tensors(plain.activation)) {
    const bool scalar = training_form && tensor.name == "threshold";
    plain.*tensor.member = scalar
                               ? read_tensor(file, "topk_threshold", {}).expand({plain.n}).clone()
                               : read_tensor(file, std::string(tensor.name), {plain.n});
  }
}

std::vector<std::string> tensor_names(const std::string& activation, bool training_form) {
  std::vector<std::string> names;
  for (const PlainTensor& tensor : tensors_of(activation))
    names.emplace_back(training_form && tensor.name == "threshold" ? "topk_threshold"
                                                                   : tensor.name);
  return names;
}

PlainDictionary read(const std::string& folder) {
  const ForeignConfig config(config_path(folder));
  const Kind kind = kind_of(config);
  const bool training_form = is_training_form(kind.activation);
  const int64_t d = config.size("d_in"), n = config.size("d_sae");
  if (kind.k > n) config.refuse("'k' is above 'd_sae'");
  const ForeignTensors file = open_tensors(weights_path(folder));
  std::vector<std::string> names = tensor_names(kind.activation, training_form);
  if (file.find("scaling_factor") != nullptr) {  // files before version 6: ones unless fine-tuned
    if (!read_tensor(file, "scaling_factor", {n}).eq(1).all().item<bool>())
      config.refuse("a fine-tuned scaling_factor has no counterpart here");
    names.emplace_back("scaling_factor");
  }
  expect_tensors(file, names);
  PlainDictionary plain =
      make_foreign(read_tensor(file, "W_enc", {d, n}).t().contiguous(),
                   read_tensor(file, "W_dec", {n, d}), read_tensor(file, "b_dec", {d}));
  plain.activation = kind.activation;
  plain.k = kind.k;
  read_latent_tensors(file, plain, training_form);
  plain.selects_by_norm = (kind.activation == "topk" || training_form) &&
                          config.flag_or("rescale_acts_by_decoder_norm", training_form);
  plain.subtracts_b_dec = config.flag_or("apply_b_dec_to_input", true);
  plain.normalization = normalization_of(config, folder);
  const ForeignConfig metadata = config.object_or_empty("metadata");
  plain.hook = metadata.text_or("hook_name", config.text_or("hook_name", ""));
  plain.source_model = metadata.text_or("model_name", config.text_or("model_name", ""));
  plain.layer = layer_of_hook(plain.hook);
  return plain;
}

}  // namespace

const Format kSaelensFormat = {
    "saelens",
    "SAELens 6: cfg.json, sae_weights.safetensors; topk, relu (its 'standard'), jumprelu, gated; "
    "batchtopk and prolu as jumprelu",
    kHeld,
    /*unit_rows=*/false,
    /*unit_only=*/false,
    kNoLeastThreshold,
    write,
    recognises,
    read};

}  // namespace megadict
