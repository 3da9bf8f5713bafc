// Folders of dictionary_learning: config.json and ae.pt, which SAEBench reads,
// too. Decoder rows are unit; AutoEncoder is renormalised by its reader otherwise.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "base/version.h"
#include "io/file.h"
#include "io/json_file.h"
#include "io/pt_file.h"
#include "model/foreign_files.h"

namespace megadict {
namespace {

std::string config_path(const std::string& folder) {
  return folder + "/config.json";
}
std::string weights_path(const std::string& folder) {
  return folder + "/ae.pt";
}

constexpr Held kHeld[] = {{"relu", "relu"},           {"topk", "topk"},
                          {"batchtopk", "batchtopk"}, {"jumprelu", "jumprelu", false},
                          {"gated", "gated"},         {"prolu", "jumprelu", false}};

// Names of a class's tensors there. [d, n]: the transposed of ours.
struct Names {
  std::string_view w_enc, w_dec, b_dec;
  bool transposed_w_enc, transposed_w_dec;
  std::string_view b_enc = "", r_mag = "", b_gate = "", b_mag = "";
};
constexpr Names kLinear = {"encoder.weight", "decoder.weight", "b_dec", false, true,
                           "encoder.bias"};
constexpr Names kPlainParameters = {"W_enc", "W_dec", "b_dec", true, false, "b_enc"};

struct Class {
  std::string_view name, trainer, activation;
  Names names;
  bool has_k;
  bool has_groups = false;
  bool written = true;
  bool subtracts_b_dec = true;
};
constexpr Class kClasses[] = {
    {"AutoEncoder",
     "StandardTrainer",
     "relu",
     {"encoder.weight", "decoder.weight", "bias", false, true, "encoder.bias"},
     false},
    {"AutoEncoderTopK", "TopKTrainer", "topk", kLinear, true},
    {"BatchTopKSAE", "BatchTopKTrainer", "batchtopk", kLinear, true},
    {"GatedAutoEncoder",
     "GatedSAETrainer",
     "gated",
     {"encoder.weight", "decoder.weight", "decoder_bias", false, true, "", "r_mag", "gate_bias",
      "mag_bias"},
     false},
    {"JumpReluAutoEncoder", "JumpReluTrainer", "jumprelu", kPlainParameters, false, false, true,
     false},
    {"MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer", "batchtopk", kPlainParameters, true,
     true, false}};

const Class& class_of(const std::string& activation) {
  for (const Class& one : kClasses)
    if (one.activation == activation && one.written) return one;
  fail(ExitCode::error, fmt::format("dictionary_learning has no class for '{}'", activation));
}

// The name of a tensor that each latent has one number of.
std::string_view name_of_latent_tensor(const Class& one, std::string_view ours) {
  if (ours == "b_enc") return one.names.b_enc;
  if (ours == "r_mag") return one.names.r_mag;
  if (ours == "b_gate") return one.names.b_gate;
  if (ours == "b_mag") return one.names.b_mag;
  return ours;
}

nlohmann::ordered_json text_or_null(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
}

nlohmann::ordered_json config_of(const PlainDictionary& folded, const Class& one,
                                 const ExportNote& note) {
  nlohmann::ordered_json trainer = {{"dict_class", one.name},
                                    {"trainer_class", one.trainer},
                                    {"activation_dim", folded.d},
                                    {"dict_size", folded.n},
                                    {"lr", nullptr},
                                    {"steps", folded.step},
                                    {"seed", nullptr},
                                    {"layer", folded.layer},
                                    {"lm_name", text_or_null(folded.source_model)},
                                    {"submodule_name", text_or_null(folded.hook)},
                                    {"megadict_version", version()},
                                    {"megadict_tokens", folded.tokens},
                                    {"megadict_activation", note.activation},
                                    {"megadict_normalize_scale", note.normalize_scale}};
  if (one.has_k) trainer["k"] = folded.k;
  return {{"trainer", trainer}, {"buffer", {{"ctx_len", nullptr}}}};
}

// A matrix as the class holds it; its memory goes into `kept`.
void add_matrix(std::string_view name, const at::Tensor& rows_nd, bool transposed,
                std::vector<at::Tensor>& kept, PtToWrite& what) {
  kept.push_back(transposed ? rows_nd.t().contiguous() : rows_nd);
  what.tensors.push_back(tensor_to_write(std::string(name), kept.back()));
}

void write(const PlainDictionary& folded, const ExportNote& note, const std::string& folder) {
  const Class& one = class_of(folded.activation);
  std::vector<at::Tensor> kept;
  PtToWrite what;
  const auto add_scalar = [&](const char* name, const at::Tensor& value) {
    kept.push_back(value);
    what.tensors.push_back(tensor_to_write(name, kept.back()));
  };
  kept.reserve(8);  // views stay where they are
  if (one.has_k) {
    add_scalar("k", at::full({}, folded.k, at::kInt));
    const bool gates = folded.threshold_n.defined();
    add_scalar("threshold", gates ? folded.threshold_n[0].clone() : at::full({}, -1.0, at::kFloat));
  }
  add_matrix(one.names.w_enc, folded.w_enc_nd, one.names.transposed_w_enc, kept, what);
  add_matrix(one.names.w_dec, folded.w_dec_nd, one.names.transposed_w_dec, kept, what);
  what.tensors.push_back(tensor_to_write(std::string(one.names.b_dec), folded.b_dec_d));
  for (const LatentTensor& tensor : latent_tensors(folded.activation)) {
    if (one.has_k && tensor.name == "threshold") continue;
    what.tensors.push_back(tensor_to_write(std::string(name_of_latent_tensor(one, tensor.name)),
                                           folded.*tensor.member));
  }
  write_pt(weights_path(folder), what);
  write_json(config_path(folder), config_of(folded, one, note));
}

bool recognises(const std::string& folder) {
  return file_exists(config_path(folder)) && file_exists(weights_path(folder));
}

const Class& class_named(const ForeignConfig& trainer) {
  const std::string name = trainer.text_or("dict_class", "");
  std::string known;
  for (const Class& one : kClasses) {
    if (one.name == name) return one;
    known += (known.empty() ? "" : ", ") + std::string(one.name);
  }
  trainer.refuse(fmt::format("the dict_class '{}' has no counterpart here", name),
                 known + " can be read");
}

// k and the threshold, which says how BatchTopK infers: -1 was never set.
void read_selection(const ForeignConfig& trainer, const ForeignTensors& file, const Class& one,
                    PlainDictionary& plain) {
  plain.k = trainer.size("k");
  if (plain.k > plain.n) trainer.refuse("'k' is above 'dict_size'");
  if (static_cast<double>(plain.k) != std::round(read_number(file, "k")))
    trainer.refuse(fmt::format("'k' is {}, in ae.pt it is {}", plain.k, read_number(file, "k")));
  if (one.activation == "topk") return;
  const double threshold = read_number(file, "threshold");
  if (threshold < 0)
    trainer.refuse(fmt::format("its threshold is {}: it was trained for too few steps to have one",
                               threshold));
  plain.threshold_n = at::full({plain.n}, threshold, at::kFloat);
}

void check_groups(const ForeignConfig& trainer, const ForeignTensors& file, int64_t n) {
  const ForeignTensor& sizes = file.at("group_sizes");
  if (sizes.shape.size() != 1 || sizes.shape[0] > n)
    trainer.refuse("group_sizes are no list of sizes");
  std::vector<float> values(static_cast<size_t>(sizes.shape[0]));
  sizes.read(values.data());
  double sum = 0;
  for (const float value : values) {
    if (!(value >= 0)) trainer.refuse(fmt::format("group_sizes holds {}", value));
    sum += value;
  }
  if (std::abs(sum - static_cast<double>(n)) > 1e-6 * static_cast<double>(n))
    trainer.refuse(fmt::format("group_sizes add up to {}, 'dict_size' is {}", sum, n));
}

PlainDictionary read(const std::string& folder) {
  const ForeignConfig whole(config_path(folder));
  const ForeignConfig trainer = whole.object_or_empty("trainer");
  const Class& one = class_named(trainer);
  const int64_t d = trainer.size("activation_dim"), n = trainer.size("dict_size");
  const ForeignTensors file = open_tensors(weights_path(folder));
  std::vector<std::string> expected = {std::string(one.names.w_enc), std::string(one.names.w_dec),
                                       std::string(one.names.b_dec)};
  for (const LatentTensor& tensor : latent_tensors(std::string(one.activation)))
    if (!one.has_k || tensor.name != "threshold")
      expected.emplace_back(name_of_latent_tensor(one, tensor.name));
  if (one.has_k) expected.insert(expected.end(), {"k", "threshold"});
  if (one.has_groups) expected.emplace_back("group_sizes");
  expect_tensors(file, expected);
  const auto matrix = [&](std::string_view name, bool transposed) {
    const std::string text(name);
    return transposed ? read_tensor(file, text, {d, n}).t().contiguous()
                      : read_tensor(file, text, {n, d});
  };
  PlainDictionary plain = make_foreign(matrix(one.names.w_enc, one.names.transposed_w_enc),
                                       matrix(one.names.w_dec, one.names.transposed_w_dec),
                                       read_tensor(file, std::string(one.names.b_dec), {d}));
  plain.activation = std::string(one.activation);
  plain.subtracts_b_dec = one.subtracts_b_dec;
  for (const LatentTensor& tensor : latent_tensors(plain.activation))
    if (!one.has_k || tensor.name != "threshold")
      plain.*tensor.member =
          read_tensor(file, std::string(name_of_latent_tensor(one, tensor.name)), {n});
  if (one.has_k) read_selection(trainer, file, one, plain);
  if (one.has_groups) check_groups(trainer, file, n);
  // Its reader, and SAEBench's, make this class's rows unit by F3, as absorbed() then does.
  constexpr double kUnit = 1e-5;
  plain.selects_by_norm = one.name == "AutoEncoder" && off_unit(plain) > kUnit;
  plain.source_model = trainer.text_or("lm_name", "");
  plain.hook = trainer.text_or("submodule_name", "");
  plain.layer = trainer.integer_or("layer", -1);
  return plain;
}

}  // namespace

const Format kDictionaryLearningFormat = {
    "dictionary_learning",
    "dictionary_learning, SAEBench: config.json, ae.pt; relu, topk, batchtopk, jumprelu, gated; "
    "prolu as jumprelu",
    kHeld,
    /*unit_rows=*/true,
    /*unit_only=*/true,
    kNoLeastThreshold,
    write,
    recognises,
    read};

}  // namespace megadict
