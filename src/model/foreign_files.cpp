#include "model/foreign_files.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <limits>

#include "base/error.h"
#include "io/json_file.h"
#include "model/tensor_views.h"

namespace megadict {

ForeignConfig::ForeignConfig(const std::string& path) : ForeignConfig(path, read_json(path)) {}

ForeignConfig::ForeignConfig(std::string path, nlohmann::json object)
    : path_(std::move(path)), object_(std::move(object)) {
  if (!object_.is_object()) refuse("is not a JSON object");
}

void ForeignConfig::refuse(const std::string& what, const std::string& hint) const {
  fail(ExitCode::bad_data, fmt::format("cannot read '{}': {}", path_, what), hint);
}

bool ForeignConfig::has(const std::string& key) const {
  return object_.contains(key) && !object_[key].is_null();
}

const nlohmann::json& ForeignConfig::value(const std::string& key) const {
  if (!has(key)) refuse(fmt::format("'{}' is missing", key));
  return object_[key];
}

int64_t ForeignConfig::integer(const std::string& key) const {
  if (!value(key).is_number_integer()) refuse(fmt::format("'{}' is not an integer", key));
  return value(key).get<int64_t>();
}

int64_t ForeignConfig::integer_or(const std::string& key, int64_t otherwise) const {
  return has(key) ? integer(key) : otherwise;
}

int64_t ForeignConfig::size(const std::string& key) const {
  const int64_t size = integer(key);
  if (size < 1 || size > std::numeric_limits<int32_t>::max())
    refuse(fmt::format("'{}' is {}, not a size", key, size));
  return size;
}

double ForeignConfig::number(const std::string& key) const {
  if (!value(key).is_number()) refuse(fmt::format("'{}' is not a number", key));
  return value(key).get<double>();
}

bool ForeignConfig::flag_or(const std::string& key, bool otherwise) const {
  if (!has(key)) return otherwise;
  if (!value(key).is_boolean()) refuse(fmt::format("'{}' is neither true nor false", key));
  return value(key).get<bool>();
}

std::string ForeignConfig::text_or(const std::string& key, const std::string& otherwise) const {
  if (!has(key)) return otherwise;
  if (!value(key).is_string()) refuse(fmt::format("'{}' is not a text", key));
  return value(key).get<std::string>();
}

ForeignConfig ForeignConfig::object_or_empty(const std::string& key) const {
  if (!has(key)) return {path_, nlohmann::json::object()};
  if (!value(key).is_object()) refuse(fmt::format("'{}' is not an object", key));
  return {path_, value(key)};
}

at::Tensor read_tensor(const SafetensorsFile& file, const std::string& name,
                       const std::vector<int64_t>& shape) {
  const SafetensorsEntry& entry = file.at(name);
  const bool is_float = entry.dtype == DType::f32 || entry.dtype == DType::f16 ||
                        entry.dtype == DType::bf16 || entry.dtype == DType::f64;
  if (!is_float)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': '{}' is {}, not a float tensor",
                                         file.path(), name, entry.stored_dtype));
  if (entry.shape != shape)
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': '{}' is [{}], cfg.json makes it [{}]", file.path(), name,
                     fmt::join(entry.shape, ","), fmt::join(shape, ",")));
  at::Tensor tensor = at::empty(shape, at::kFloat);
  if (entry.dtype == DType::f32) {
    file.read(entry, view_of(tensor));
    return tensor;
  }
  const std::vector<float> values = file.read_as_float(entry);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<float>());
  return tensor;
}

void expect_tensors(const SafetensorsFile& file, const std::vector<std::string>& names) {
  for (const std::string& name : names) file.at(name);
  for (const SafetensorsEntry& entry : file.entries())
    if (std::find(names.begin(), names.end(), entry.name) == names.end())
      fail(ExitCode::bad_data,
           fmt::format("cannot read '{}': there is no use for the tensor '{}'; expected {}",
                       file.path(), entry.name, fmt::join(names, ", ")));
}

TensorToWrite tensor_to_write(const std::string& name, const at::Tensor& tensor) {
  return {name, tensor.sizes().vec(), view_of(tensor)};
}

std::string linear_problem(const SavedDictionary& saved, std::string_view format,
                           const std::vector<std::string>& activations) {
  const ModelConfig& config = saved.dictionary.config;
  if (config.encoder != "linear")
    return fmt::format("cannot write encoder '{}' as {}: the format holds one linear encoder",
                       config.encoder, format);
  if (config.decoder != "linear" && config.decoder != "tied")
    return fmt::format("cannot write decoder '{}' as {}: the format holds one linear decoder",
                       config.decoder, format);
  if (std::find(activations.begin(), activations.end(), config.activation) == activations.end())
    return fmt::format("cannot write activation '{}' as {}: the format holds {}", config.activation,
                       format, fmt::join(activations, " and "));
  return "";
}

SavedDictionary make_foreign(const std::string& activation, int64_t k, at::Tensor w_enc_nd,
                             at::Tensor w_dec_nd, at::Tensor b_enc_n, at::Tensor b_dec_d) {
  SavedDictionary saved;
  Dictionary& out = saved.dictionary;
  out.n = w_enc_nd.size(0);
  out.d = w_enc_nd.size(1);
  out.latents = {0, out.n};
  out.config.activation = activation;
  out.config.n_latents = out.n;
  out.config.k = k;
  out.w_enc_ld = std::move(w_enc_nd);
  out.w_dec_ld = std::move(w_dec_nd);
  out.b_enc_l = std::move(b_enc_n);
  out.b_dec_d = std::move(b_dec_d);
  return saved;
}

int64_t layer_of_hook(const std::string& hook) {
  for (size_t at = hook.find('.'); at != std::string::npos; at = hook.find('.', at + 1)) {
    size_t end = at + 1;
    while (end < hook.size() && std::isdigit(static_cast<unsigned char>(hook[end]))) ++end;
    const bool whole = end > at + 1 && end < at + 10 && (end == hook.size() || hook[end] == '.');
    if (whole) return std::stoll(hook.substr(at + 1, end - at - 1));
  }
  return -1;
}

int64_t selectable_k(const SavedDictionary& saved) {
  return std::min(saved.dictionary.config.k, saved.dictionary.n);
}

}  // namespace megadict
