// SAELens folders (formats.md 2.3): cfg.json and sae_weights.safetensors.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

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

std::string problem(const SavedDictionary& saved) {
  return linear_problem(saved, "saelens", {"topk", "relu", "batchtopk"});
}

nlohmann::ordered_json text_or_null(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
}

// Facts nobody recorded are null: a guess would be believed.
nlohmann::ordered_json metadata_of(const SavedDictionary& folded, const ExportNote& note,
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

// What a dictionary is called there: to use it, and while it was trained.
struct Architecture {
  std::string_view activation, name, training;
};
constexpr Architecture kArchitectures[] = {{"topk", "topk", "topk"},
                                           {"relu", "standard", "standard"},
                                           {"batchtopk", "jumprelu", "batchtopk"}};

const Architecture& architecture_of(const std::string& activation) {
  return *std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                       [&](const Architecture& one) { return one.activation == activation; });
}

void write(const SavedDictionary& folded, const ExportNote& note, const std::string& folder) {
  const Dictionary& dictionary = folded.dictionary;
  const Architecture& architecture = architecture_of(dictionary.config.activation);
  nlohmann::ordered_json config = {{"architecture", architecture.name},
                                   {"d_in", dictionary.d},
                                   {"d_sae", dictionary.n},
                                   {"dtype", "float32"},
                                   {"device", "cpu"},
                                   {"apply_b_dec_to_input", true},
                                   {"normalize_activations", "none"},
                                   {"reshape_activations", "none"}};
  if (architecture.name == "topk") {
    config["k"] = selectable_k(folded);
    config["rescale_acts_by_decoder_norm"] = false;
  }
  config["metadata"] = metadata_of(folded, note, std::string(architecture.training));
  const at::Tensor w_enc_dn = dictionary.w_enc_ld.t().contiguous();
  std::vector<TensorToWrite> tensors = {
      tensor_to_write("W_enc", w_enc_dn), tensor_to_write("b_enc", dictionary.b_enc_l),
      tensor_to_write("W_dec", dictionary.w_dec_ld), tensor_to_write("b_dec", dictionary.b_dec_d)};
  const at::Tensor threshold = at::full({dictionary.n}, dictionary.threshold, at::kFloat);
  if (architecture.name == "jumprelu") {
    config["metadata"]["megadict_k"] = selectable_k(folded);
    tensors.push_back(tensor_to_write("threshold", threshold));
  }
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

// Nothing but our own export says it; 0 = unknown, and needed by nobody who has a threshold.
int64_t k_in_metadata(const ForeignConfig& config) {
  const ForeignConfig metadata = config.object_or_empty("metadata");
  return metadata.has("megadict_k") ? metadata.size("megadict_k") : 0;
}

// Before version 6 a topk file said "standard" and named its activation.
Kind kind_of(const ForeignConfig& config) {
  const std::string architecture = config.text_or("architecture", "standard");
  if (architecture == "topk" && config.has("k")) return {"topk", config.size("k")};
  if (architecture == "jumprelu") return {"batchtopk", k_in_metadata(config)};
  const std::string activation =
      config.text_or("activation_fn", config.text_or("activation_fn_str", "relu"));
  const bool known = architecture == "standard" || architecture == "topk";
  if (known && (architecture == "topk" || activation == "topk"))
    return {"topk", config.object_or_empty("activation_fn_kwargs").size("k")};
  if (known && activation == "relu") return {"relu", 0};
  config.refuse(known ? fmt::format("the activation '{}' has no counterpart here", activation)
                      : fmt::format("the architecture '{}' has no counterpart here", architecture),
                "'standard' (relu), 'topk' and 'jumprelu' can be read");
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

// What SAELens does differently becomes weights: a selection on h |w_dec|, an input that b_dec is
// not subtracted from.
void absorb(const ForeignConfig& config, Dictionary& dictionary) {
  if (dictionary.config.activation == "topk" &&
      config.flag_or("rescale_acts_by_decoder_norm", false))
    unit_decoder_rows(dictionary);
  if (!config.flag_or("apply_b_dec_to_input", true)) {
    const at::Tensor shift =
        at::mv(dictionary.w_enc_ld.to(at::kDouble), dictionary.b_dec_d.to(at::kDouble));
    dictionary.b_enc_l = (dictionary.b_enc_l + shift).to(at::kFloat);
  }
}

// jumprelu: z = relu(v) where v > threshold.
double common_threshold(const ForeignConfig& config, const SafetensorsFile& file, int64_t n) {
  const at::Tensor threshold = read_tensor(file, "threshold", {n});
  const double first = threshold[0].item<double>();
  if (!threshold.eq(first).all().item<bool>())
    config.refuse("a threshold of its own for each latent has no counterpart here",
                  "jumprelu with one threshold for all, as BatchTopK leaves it, can be read");
  return std::max(first, 0.0);
}

SavedDictionary read(const std::string& folder) {
  const ForeignConfig config(config_path(folder));
  const Kind kind = kind_of(config);
  const int64_t d = config.size("d_in"), n = config.size("d_sae");
  if (kind.k > n) config.refuse("'k' is above 'd_sae'");
  const auto file = SafetensorsFile::open(weights_path(folder));
  std::vector<std::string> names = {"W_enc", "b_enc", "W_dec", "b_dec"};
  if (file.find("scaling_factor") != nullptr) {  // files before version 6: ones unless fine-tuned
    if (!read_tensor(file, "scaling_factor", {n}).eq(1).all().item<bool>())
      config.refuse("a fine-tuned scaling_factor has no counterpart here");
    names.emplace_back("scaling_factor");
  }
  const bool jumps = kind.activation == "batchtopk";
  if (jumps) names.emplace_back("threshold");
  expect_tensors(file, names);
  SavedDictionary saved =
      make_foreign(kind.activation, kind.k, read_tensor(file, "W_enc", {d, n}).t().contiguous(),
                   read_tensor(file, "W_dec", {n, d}), read_tensor(file, "b_enc", {n}),
                   read_tensor(file, "b_dec", {d}));
  if (jumps) saved.dictionary.threshold = common_threshold(config, file, n);
  absorb(config, saved.dictionary);
  saved.normalization = normalization_of(config, folder);
  const ForeignConfig metadata = config.object_or_empty("metadata");
  saved.hook = metadata.text_or("hook_name", config.text_or("hook_name", ""));
  saved.source_model = metadata.text_or("model_name", config.text_or("model_name", ""));
  saved.layer = layer_of_hook(saved.hook);
  return saved;
}

}  // namespace

const Format kSaelensFormat = {
    "saelens",
    "SAELens 6: cfg.json, sae_weights.safetensors; topk, relu (its 'standard'), batchtopk "
    "(its 'jumprelu')",
    problem,
    write,
    recognises,
    read};

}  // namespace megadict
