#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>

#include "base/error.h"
#include "io/safetensors_header.h"

namespace megadict {

namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kLengthBytes = 8, kAlignment = 8;

int64_t elements_of(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

}  // namespace

int64_t SafetensorsEntry::elements() const {
  return elements_of(shape);
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  SafetensorsFile opened{RandomAccessFile(path)};
  const int64_t size = opened.file_.size();
  if (size < kLengthBytes)
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}' as safetensors: only {} bytes", path, size));
  uint64_t length = 0;
  opened.file_.read(0, &length, sizeof(length));
  if (length > static_cast<uint64_t>(std::min(kMaxHeaderBytes, size - kLengthBytes)))
    fail(ExitCode::bad_data,
         fmt::format(
             "cannot read '{}' as safetensors: a header of {} bytes in a file of {} (at most "
             "{} are allowed)",
             path, length, size, kMaxHeaderBytes));
  std::string text(length, '\0');
  opened.file_.read(kLengthBytes, text.data(), text.size());
  opened.data_begin_ = kLengthBytes + static_cast<int64_t>(length);
  SafetensorsHeader header = parse_safetensors_header(text, size - opened.data_begin_, path);
  opened.entries_ = std::move(header.entries);
  opened.metadata_ = std::move(header.metadata);
  return opened;
}

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
  for (const SafetensorsEntry& entry : entries_)
    if (entry.name == name) return &entry;
  return nullptr;
}

const SafetensorsEntry& SafetensorsFile::at(const std::string& name) const {
  if (const SafetensorsEntry* entry = find(name)) return *entry;
  std::string names;
  for (const SafetensorsEntry& entry : entries_) {
    if (names.size() > 200) {
      names += ", ...";
      break;
    }
    names += (names.empty() ? "" : ", ") + entry.name;
  }
  fail(ExitCode::bad_data, fmt::format("cannot read '{}': no tensor '{}'; it holds {}", path(),
                                       name, names.empty() ? "none" : names));
}

void SafetensorsFile::read(const SafetensorsEntry& entry, BufferView to) const {
  if (entry.dtype != to.dtype || entry.elements() != to.count)
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': '{}' is {} [{}], expected {} elements of {}", path(),
                     entry.name, entry.stored_dtype, fmt::join(entry.shape, ","), to.count,
                     name_of(to.dtype)));
  file_.read(data_begin_ + entry.begin, to.data, to.bytes());
}

void SafetensorsFile::read_rows(const SafetensorsEntry& entry, Range rows, BufferView to) const {
  const int64_t all = entry.shape.empty() ? 1 : entry.shape[0];
  const int64_t row_elements = all == 0 ? 0 : entry.elements() / all;
  if (entry.dtype != to.dtype || rows.begin < 0 || rows.end > all ||
      rows.size() * row_elements != to.count)
    fail(
        ExitCode::bad_data,
        fmt::format("cannot read '{}': rows {} to {} of '{}', which is {} [{}]", path(), rows.begin,
                    rows.end, entry.name, entry.stored_dtype, fmt::join(entry.shape, ",")));
  read_elements(entry, {rows.begin * row_elements, rows.end * row_elements}, to);
}

void SafetensorsFile::read_elements(const SafetensorsEntry& entry, Range elements,
                                    BufferView to) const {
  if (entry.dtype != to.dtype || elements.size() != to.count)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': '{}' is {}, not {}", path(), entry.name,
                                         entry.stored_dtype, name_of(to.dtype)));
  const auto size = static_cast<int64_t>(size_of(to.dtype));
  read_bytes(entry, {elements.begin * size, elements.end * size}, to.data);
}

void SafetensorsFile::read_bytes(const SafetensorsEntry& entry, Range bytes, void* to) const {
  if (bytes.begin < 0 || bytes.end > entry.end - entry.begin)
    fail(ExitCode::error,
         fmt::format("bytes {} to {} of '{}' in '{}'", bytes.begin, bytes.end, entry.name, path()));
  file_.read(data_begin_ + entry.begin + bytes.begin, to, static_cast<size_t>(bytes.size()));
}

std::vector<float> SafetensorsFile::read_as_float(const SafetensorsEntry& entry) const {
  const DType dtype = entry.dtype.value_or(DType::u8);
  if (dtype != DType::f16 && dtype != DType::bf16 && dtype != DType::f32 && dtype != DType::f64)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': '{}' is {}, expected F32, F16, BF16 or "
                                         "F64",
                                         path(), entry.name, entry.stored_dtype));
  std::vector<float> values(static_cast<size_t>(entry.elements()));
  if (dtype == DType::f32) {
    read(entry, view_of(values.data(), entry.elements()));
    return values;
  }
  std::vector<std::byte> raw(static_cast<size_t>(entry.end - entry.begin));
  read(entry, {raw.data(), entry.elements(), dtype, Device::cpu});
  convert_to_float(raw.data(), dtype, entry.elements(), values.data());
  return values;
}

namespace {

std::string header_text(const std::vector<const TensorToWrite*>& tensors,
                        const SafetensorsMetadata& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t next = 0;
  for (const TensorToWrite* tensor : tensors) {
    const int64_t end = next + static_cast<int64_t>(tensor->data.bytes());
    if (elements_of(tensor->shape) != tensor->data.count || header.contains(tensor->name))
      fail(ExitCode::error,
           fmt::format("tensor '{}' is written twice or its shape [{}] does not "
                       "hold {} elements",
                       tensor->name, fmt::join(tensor->shape, ","), tensor->data.count));
    header[tensor->name] = {{"dtype", safetensors_name_of(tensor->data.dtype)},
                            {"shape", tensor->shape},
                            {"data_offsets", {next, end}}};
    next = end;
  }
  std::string text = header.dump();
  text.resize(
      static_cast<size_t>(ceil_div(static_cast<int64_t>(text.size()), kAlignment)) * kAlignment,
      ' ');
  return text;
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const SafetensorsMetadata& metadata) {
  std::vector<const TensorToWrite*> ordered;
  for (const TensorToWrite& tensor : tensors) ordered.push_back(&tensor);
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto* a, const auto* b) {
    return size_of(a->data.dtype) > size_of(b->data.dtype);
  });
  const std::string text = header_text(ordered, metadata);
  const uint64_t length = text.size();
  AtomicFile file(path);
  file.write(&length, sizeof(length));
  file.write(text);
  for (const TensorToWrite* tensor : ordered) file.write(tensor->data.data, tensor->data.bytes());
  file.commit();
}

}  // namespace megadict
