// OpenMOSS folders: config.json and sae_weights.safetensors. b_D is not subtracted
// from the input (F4); a threshold is held as its logarithm.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "base/version.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/foreign_files.h"

namespace megadict {
namespace {

constexpr const char* kLogThreshold = "activation_function.log_jumprelu_threshold";
constexpr const char* kAverageNorm = "dataset_average_activation_norm.";

std::string config_path(const std::string& folder) {
  return folder + "/config.json";
}
std::string weights_path(const std::string& folder) {
  return folder + "/sae_weights.safetensors";
}

constexpr Held kHeld[] = {{"topk", "topk", false},          {"relu", "relu", false},
                          {"batchtopk", "jumprelu", false}, {"jumprelu", "jumprelu", false},
                          {"gated", "jumprelu", false},     {"prolu", "jumprelu", false}};

// The reader takes n = int(d * factor).
double expansion_factor(int64_t n, int64_t d) {
  double factor = static_cast<double>(n) / static_cast<double>(d);
  while (static_cast<int64_t>(static_cast<double>(d) * factor) < n)
    factor = std::nextafter(factor, INFINITY);
  return factor;
}

void write(const PlainDictionary& folded, const ExportNote& note, const std::string& folder) {
  const nlohmann::ordered_json config = {{"sae_type", "sae"},
                                         {"d_model", folded.d},
                                         {"expansion_factor", expansion_factor(folded.n, folded.d)},
                                         {"use_decoder_bias", true},
                                         {"act_fn", folded.activation},
                                         {"top_k", std::max<int64_t>(1, folded.k)},
                                         {"use_glu_encoder", false},
                                         {"norm_activation", "inference"},
                                         {"sparsity_include_decoder_norm", false},
                                         {"hook_point_in", folded.hook},
                                         {"hook_point_out", folded.hook}};
  const at::Tensor w_e_dn = folded.w_enc_nd.t().contiguous();
  std::vector<TensorToWrite> tensors = {
      tensor_to_write("W_E", w_e_dn), tensor_to_write("b_E", folded.b_enc_n),
      tensor_to_write("W_D", folded.w_dec_nd), tensor_to_write("b_D", folded.b_dec_d)};
  at::Tensor log_threshold;
  if (folded.activation == "jumprelu") {
    log_threshold = folded.threshold_n.to(at::kDouble).log().to(at::kFloat);
    tensors.push_back(tensor_to_write(kLogThreshold, log_threshold));
  }
  write_safetensors(weights_path(folder), tensors,
                    {{"format", "pt"},
                     {"megadict_version", std::string(version())},
                     {"megadict_step", fmt::format("{}", folded.step)},
                     {"megadict_tokens", fmt::format("{}", folded.tokens)},
                     {"megadict_scale", std::string(name_of(note.scale))},
                     {"megadict_normalize_scale", fmt::format("{}", note.normalize_scale)},
                     {"megadict_activation", note.activation},
                     {"megadict_k", fmt::format("{}", folded.k)},
                     {"model_name", folded.source_model}});
  write_json(config_path(folder), config);
}

bool recognises(const std::string& folder) {
  return file_exists(config_path(folder)) && file_exists(weights_path(folder));
}

std::string activation_of(const ForeignConfig& config) {
  const std::string activation = config.text_or("act_fn", "relu");
  const std::string kind = config.text_or("sae_type", "sae");
  if (kind != "sae")
    config.refuse(fmt::format("sae_type '{}' has no counterpart here", kind), "'sae' can be read");
  if (config.flag_or("use_glu_encoder", false))
    config.refuse("an encoder of gated linear units has no counterpart here");
  if (activation != "relu" && activation != "topk" && activation != "jumprelu")
    config.refuse(fmt::format("act_fn '{}' has no counterpart here", activation),
                  "'relu', 'topk' and 'jumprelu' can be read");
  const std::string in = config.text_or("hook_point_in", "");
  if (config.text_or("hook_point_out", in) != in) config.refuse("a transcoder has no counterpart");
  return activation;
}

// s = sqrt(d) / A, where A is the mean norm of the rows it was trained on; under any other rule the
// number may never have been set.
Normalization normalization_of(const ForeignConfig& config, const ForeignTensors& file, int64_t d,
                               std::vector<std::string>& names) {
  const std::string rule = config.text_or("norm_activation", "dataset-wise");
  if (rule != "dataset-wise" && rule != "inference")
    config.refuse(fmt::format("norm_activation '{}' has no counterpart here", rule),
                  "rows can be scaled by one number, not normalised one by one");
  const std::string hook = config.text_or("hook_point_in", "");
  const std::string own = kAverageNorm + hook;
  for (const ForeignTensor& tensor : file.tensors)
    if (tensor.name.starts_with(kAverageNorm)) names.push_back(tensor.name);
  Normalization normalization;
  if (rule == "inference") return normalization;
  const double norm = read_tensor(file, own, {}).item<double>();
  if (!(norm > 0) || !std::isfinite(norm))
    config.refuse(fmt::format("norm_activation is dataset-wise, but '{}' is {}", own, norm));
  normalization.scale = std::sqrt(static_cast<double>(d)) / norm;
  return normalization;
}

int64_t latents_of(const ForeignConfig& config, int64_t d) {
  const double latents = static_cast<double>(d) * config.number("expansion_factor");
  if (!(latents >= 1) || latents > kMostLatents)
    config.refuse(fmt::format("'expansion_factor' makes {:g} latents", latents));
  return static_cast<int64_t>(latents);
}

// What our own export noted; 0 = unknown.
int64_t noted_k(const ForeignTensors& file, int64_t n) {
  const auto found = file.texts.find("megadict_k");
  if (found == file.texts.end() || found->second.size() > 10) return 0;
  const int64_t k = std::atoll(found->second.c_str());
  return k >= 0 && k <= n ? k : 0;
}

PlainDictionary read(const std::string& folder) {
  const ForeignConfig config(config_path(folder));
  const std::string activation = activation_of(config);
  const int64_t d = config.size("d_model"), n = latents_of(config, d);
  const bool jumps = activation == "jumprelu", bias = config.flag_or("use_decoder_bias", true);
  const ForeignTensors file = open_tensors(weights_path(folder));
  std::vector<std::string> names = {"W_E", "b_E", "W_D"};
  if (bias) names.emplace_back("b_D");
  if (jumps) names.emplace_back(kLogThreshold);
  const Normalization normalization = normalization_of(config, file, d, names);
  expect_tensors(file, names);
  // W_E first: it shows whether the file is as wide as the settings say.
  at::Tensor w_enc_nd = read_tensor(file, "W_E", {d, n}).t().contiguous();
  PlainDictionary plain = make_foreign(std::move(w_enc_nd), read_tensor(file, "W_D", {n, d}),
                                       bias ? read_tensor(file, "b_D", {d}) : at::zeros({d}));
  plain.activation = activation;
  plain.b_enc_n = read_tensor(file, "b_E", {n});
  if (jumps)
    plain.threshold_n = read_tensor(file, kLogThreshold, {n}).to(at::kDouble).exp().to(at::kFloat);
  plain.k = activation == "topk" ? config.size("top_k") : noted_k(file, n);
  if (plain.k > n) config.refuse("'top_k' is above the number of latents");
  plain.subtracts_b_dec = false;
  plain.selects_by_norm = config.flag_or("sparsity_include_decoder_norm", true);
  plain.normalization = normalization;
  plain.hook = config.text_or("hook_point_in", "");
  const auto model = file.texts.find("model_name");
  if (model != file.texts.end()) plain.source_model = model->second;
  plain.layer = layer_of_hook(plain.hook);
  return plain;
}

}  // namespace

const Format kOpenmossFormat = {
    "openmoss",
    "OpenMOSS: config.json, sae_weights.safetensors; topk, relu, jumprelu; batchtopk, gated and "
    "prolu as jumprelu",
    kHeld,
    /*unit_rows=*/false,
    /*unit_only=*/false,
    /*least_threshold=*/1e-30,
    write,
    recognises,
    read};

}  // namespace megadict
