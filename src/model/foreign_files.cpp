#include "model/foreign_files.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <limits>
#include <memory>

#include "base/error.h"
#include "io/json_file.h"
#include "io/npz.h"
#include "io/pt_file.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr int64_t kMostSettingsBytes = 4 << 20;  // a thousand times what any tool writes

}  // namespace

ForeignConfig::ForeignConfig(const std::string& path)
    : ForeignConfig(path, read_json(path, kMostSettingsBytes)) {}

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

void ForeignConfig::refuse_null(const std::string& key) const {
  if (object_.contains(key) && object_[key].is_null()) refuse(fmt::format("'{}' is null", key));
}

ForeignConfig ForeignConfig::object_or_empty(const std::string& key) const {
  if (!has(key)) return {path_, nlohmann::json::object()};
  if (!value(key).is_object()) refuse(fmt::format("'{}' is not an object", key));
  return {path_, value(key)};
}

const ForeignTensor* ForeignTensors::find(const std::string& name) const {
  for (const ForeignTensor& tensor : tensors)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

const ForeignTensor& ForeignTensors::at(const std::string& name) const {
  constexpr size_t kLongest = 200;
  if (const ForeignTensor* tensor = find(name)) return *tensor;
  std::string names;
  for (const ForeignTensor& tensor : tensors) {
    if (names.size() > kLongest) {
      names += ", ...";
      break;
    }
    names += (names.empty() ? "" : ", ") + tensor.name;
  }
  fail(ExitCode::bad_data, fmt::format("cannot read '{}': no tensor '{}'; it holds {}", path, name,
                                       names.empty() ? "none" : names));
}

namespace {

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f64;
}

ForeignTensors open_safetensors(const std::string& path) {
  const auto file = std::make_shared<SafetensorsFile>(SafetensorsFile::open(path));
  ForeignTensors out{path, {}, file->metadata()};
  for (const SafetensorsEntry& entry : file->entries()) {
    const auto read = [file, &entry](float* to) {  // `entry` lives in `file`
      if (entry.dtype == DType::f32) return file->read(entry, view_of(to, entry.elements()));
      const std::vector<float> values = file->read_as_float(entry);
      std::copy(values.begin(), values.end(), to);
    };
    out.tensors.push_back(
        {entry.name, entry.stored_dtype, entry.dtype && is_float(*entry.dtype), entry.shape, read});
  }
  return out;
}

ForeignTensors open_pt(const std::string& path) {
  const auto file = std::make_shared<PtFile>(PtFile::open(path));
  ForeignTensors out{path, {}, file->texts()};
  for (const PtTensor& tensor : file->tensors())
    out.tensors.push_back({tensor.name, std::string(name_of(tensor.dtype)), is_float(tensor.dtype),
                           tensor.shape,
                           [file, &tensor](float* to) { file->read_as_float(tensor, to); }});
  return out;
}

ForeignTensors open_npz(const std::string& path) {
  const auto file = std::make_shared<NpzFile>(NpzFile::open(path));
  ForeignTensors out{path, {}};
  for (const NpzArray& array : file->arrays())
    out.tensors.push_back({array.name, std::string(name_of(array.header.dtype)),
                           is_float(array.header.dtype), array.header.shape,
                           [file, &array](float* to) { file->read_as_float(array, to); }});
  return out;
}

}  // namespace

ForeignTensors open_tensors(const std::string& path) {
  if (path.ends_with(".pt")) return open_pt(path);
  if (path.ends_with(".npz")) return open_npz(path);
  return open_safetensors(path);
}

double read_number(const ForeignTensors& file, const std::string& name) {
  const ForeignTensor& entry = file.at(name);
  if (!entry.shape.empty())
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': '{}' is [{}], not one number",
                                         file.path, name, fmt::join(entry.shape, ",")));
  float value = 0;
  entry.read(&value);
  return value;
}

at::Tensor read_tensor(const ForeignTensors& file, const std::string& name,
                       const std::vector<int64_t>& shape) {
  const ForeignTensor& entry = file.at(name);
  if (!entry.is_float)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': '{}' is {}, not a float tensor",
                                         file.path, name, entry.stored_dtype));
  if (entry.shape != shape)
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': '{}' is [{}], the settings make it [{}]", file.path, name,
                     fmt::join(entry.shape, ","), fmt::join(shape, ",")));
  at::Tensor tensor = at::empty(shape, at::kFloat);
  entry.read(tensor.mutable_data_ptr<float>());
  return tensor;
}

void expect_tensors(const ForeignTensors& file, const std::vector<std::string>& names) {
  for (const std::string& name : names) file.at(name);
  for (const ForeignTensor& tensor : file.tensors)
    if (std::find(names.begin(), names.end(), tensor.name) == names.end())
      fail(ExitCode::bad_data,
           fmt::format("cannot read '{}': there is no use for the tensor '{}'; expected {}",
                       file.path, tensor.name, fmt::join(names, ", ")));
}

TensorToWrite tensor_to_write(const std::string& name, const at::Tensor& tensor) {
  return {name, tensor.sizes().vec(), view_of(tensor)};
}

PlainDictionary make_foreign(at::Tensor w_enc_nd, at::Tensor w_dec_nd, at::Tensor b_dec_d) {
  PlainDictionary out;
  out.activation = "relu";
  out.n = w_enc_nd.size(0);
  out.d = w_enc_nd.size(1);
  out.w_enc_nd = std::move(w_enc_nd);
  out.w_dec_nd = std::move(w_dec_nd);
  out.b_dec_d = std::move(b_dec_d);
  return out;
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

}  // namespace megadict
