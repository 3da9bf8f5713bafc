#include "data/activation_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "io/hdf5_file.h"
#include "io/npy.h"
#include "io/safetensors.h"

namespace megadict {

namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& why,
                         const std::string& hint = "") {
  fail(ExitCode::bad_data, fmt::format("cannot import '{}': {}", path, why), hint);
}

std::string text_of(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ","));
}

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f64;
}

// Fills in everything but the functions; `what` names the array.
ActivationSource describe_source(const std::string& path, const std::string& what, DType stored,
                                 const std::vector<int64_t>& shape, const SourceOptions& options) {
  if (shape.size() < 2)
    refuse(path, fmt::format("{} is {}, expected [rows, d]", what, text_of(shape)));
  ActivationSource source;
  source.path = path;
  source.dtype = stored;
  source.was_float64 = stored == DType::f64;
  if (source.was_float64) source.dtype = DType::f32;
  if (stored == DType::u16 && options.dtype == "bfloat16") source.dtype = DType::bf16;
  if (!is_float(source.dtype))
    refuse(path, fmt::format("{} is {}, not floats", what, name_of(stored)),
           stored == DType::u16 ? "--dtype bfloat16 if these are bfloat16 bits" : "");
  source.width = shape.back();
  source.rows = std::accumulate(shape.begin(), shape.end() - 1, int64_t{1}, std::multiplies<>());
  if (source.rows == 0 || source.width == 0)
    refuse(path, fmt::format("{} is {}: no rows", what, text_of(shape)));
  source.column = [](const std::string&) { return std::vector<uint32_t>(); };
  source.mask = [] { return std::vector<uint8_t>(); };
  return source;
}

// Integers of any type as unsigned 32-bit ones.
std::vector<uint32_t> as_u32(const std::vector<int64_t>& values, const std::string& path,
                             const std::string& name) {
  std::vector<uint32_t> column(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0 || values[i] > std::numeric_limits<uint32_t>::max())
      refuse(path, fmt::format("{}[{}] is {}, not in 0 .. 2^32 - 1", name, i, values[i]));
    column[i] = static_cast<uint32_t>(values[i]);
  }
  return column;
}

// Calls read(view) with a buffer of doubles and rounds them to float32.
template <class Read>
void read_narrowed(int64_t count, void* to, Read read) {
  std::vector<double> values(static_cast<size_t>(count));
  read(view_of(values.data(), count));
  convert_to_float(values.data(), DType::f64, count, static_cast<float*>(to));
}

ActivationSource open_npy(const std::string& path, const SourceOptions& options) {
  auto file = std::make_shared<NpyFile>(NpyFile::open(path));
  ActivationSource source =
      describe_source(path, "its array", file->dtype(), file->shape(), options);
  source.read = [file](Range rows, void* to) {
    const int64_t count = rows.size() * file->row_elements();
    if (file->dtype() == DType::f64)
      return read_narrowed(count, to, [&](BufferView view) { file->read_rows(rows, view); });
    file->read_rows(rows, {to, count, file->dtype(), Device::cpu});
  };
  return source;
}

// The tensor meant: the one named, or the only one of floats with rows.
const SafetensorsEntry& choose_tensor(const SafetensorsFile& file, const std::string& name) {
  if (!name.empty()) return file.at(name);
  const SafetensorsEntry* found = nullptr;
  for (const SafetensorsEntry& entry : file.entries()) {
    if (!entry.dtype || !is_float(*entry.dtype) || entry.shape.size() < 2) continue;
    if (found != nullptr)
      fail(ExitCode::usage,
           fmt::format("'{}' holds several tensors of floats: '{}', '{}'", file.path(), found->name,
                       entry.name),
           "--tensor NAME");
    found = &entry;
  }
  if (found == nullptr) refuse(file.path(), "no tensor of floats with rows");
  return *found;
}

template <class T>
std::vector<int64_t> read_integers(const SafetensorsFile& file, const SafetensorsEntry& entry) {
  std::vector<T> values(static_cast<size_t>(entry.elements()));
  file.read(entry, view_of(values.data(), entry.elements()));
  return {values.begin(), values.end()};
}

std::vector<uint32_t> tensor_column(const SafetensorsFile& file, const std::string& name,
                                    int64_t rows) {
  const SafetensorsEntry* entry = file.find(name);
  if (entry == nullptr) return {};
  if (entry->elements() != rows)
    refuse(file.path(),
           fmt::format("'{}' is {}, there are {} rows", name, text_of(entry->shape), rows));
  switch (entry->dtype.value_or(DType::f32)) {
    case DType::i64:
      return as_u32(read_integers<int64_t>(file, *entry), file.path(), name);
    case DType::i32:
      return as_u32(read_integers<int32_t>(file, *entry), file.path(), name);
    case DType::u32:
      return as_u32(read_integers<uint32_t>(file, *entry), file.path(), name);
    case DType::u16:
      return as_u32(read_integers<uint16_t>(file, *entry), file.path(), name);
    default:
      refuse(file.path(),
             fmt::format("'{}' is {}, expected I64, I32, U32 or U16", name, entry->stored_dtype));
  }
}

std::vector<uint8_t> tensor_mask(const SafetensorsFile& file, int64_t rows) {
  const SafetensorsEntry* entry = file.find("mask");
  if (entry == nullptr) return {};
  const bool one_byte = entry->stored_dtype == "BOOL" || entry->stored_dtype == "U8";
  if (!one_byte || entry->elements() != rows)
    refuse(file.path(), fmt::format("'mask' is {} {}, expected BOOL or U8 for {} rows",
                                    entry->stored_dtype, text_of(entry->shape), rows));
  std::vector<uint8_t> keep(static_cast<size_t>(rows));
  file.read_bytes(*entry, {0, rows}, keep.data());
  return keep;
}

ActivationSource open_safetensors(const std::string& path, const SourceOptions& options) {
  auto file = std::make_shared<SafetensorsFile>(SafetensorsFile::open(path));
  const SafetensorsEntry& entry = choose_tensor(*file, options.tensor);
  if (!entry.dtype)
    refuse(path, fmt::format("'{}' is {}, not floats", entry.name, entry.stored_dtype));
  ActivationSource source =
      describe_source(path, "'" + entry.name + "'", *entry.dtype, entry.shape, options);
  source.read = [file, &entry](Range rows, void* to) {  // `entry` lives in `file`
    const int64_t width = entry.shape.back();
    const Range elements{rows.begin * width, rows.end * width};
    const auto read = [&](BufferView view) { file->read_elements(entry, elements, view); };
    if (entry.dtype == DType::f64) return read_narrowed(elements.size(), to, read);
    read({to, elements.size(), *entry.dtype, Device::cpu});
  };
  const int64_t rows = source.rows;
  source.column = [file, rows](const std::string& name) {
    return tensor_column(*file, name, rows);
  };
  source.mask = [file, rows] { return tensor_mask(*file, rows); };
  return source;
}

bool is_rows_of_floats(const Hdf5File& file, const std::string& name) {
  try {
    const Hdf5Dataset facts = file.describe(name);
    return is_float(facts.dtype) && facts.shape.size() >= 2;
  } catch (const Error&) {
    return false;  // texts, compounds: not what is looked for
  }
}

// The dataset meant: the one named, 'activations', or the only one of floats with rows.
std::string choose_dataset(const Hdf5File& file, const std::string& name) {
  if (!name.empty()) return name;
  if (file.has("activations")) return "activations";
  const std::vector<std::string> names = file.dataset_names();
  std::string found;
  for (const std::string& candidate : names) {
    if (!is_rows_of_floats(file, candidate)) continue;
    if (!found.empty())
      fail(ExitCode::usage,
           fmt::format("'{}' holds several datasets of floats: '{}', '{}'", file.path(), found,
                       candidate),
           "--dataset NAME");
    found = candidate;
  }
  if (found.empty())
    refuse(file.path(),
           fmt::format("no dataset of floats with rows; it holds {}",
                       names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "))));
  return found;
}

// `sibling` lies beside the activations in their group.
std::vector<uint32_t> dataset_column(const Hdf5File& file, const std::string& sibling,
                                     int64_t rows) {
  if (!file.has(sibling)) return {};
  const Hdf5Dataset facts = file.describe(sibling);
  if (is_float(facts.dtype) || facts.rows() * facts.row_elements() != rows)
    refuse(file.path(), fmt::format("'{}' is {} {}, expected one integer for each of {} rows",
                                    sibling, name_of(facts.dtype), text_of(facts.shape), rows));
  std::vector<int64_t> values(static_cast<size_t>(rows));
  file.read_rows(sibling, {0, facts.rows()}, view_of(values.data(), rows));
  return as_u32(values, file.path(), sibling);
}

ActivationSource open_hdf5(const std::string& path, const SourceOptions& options) {
  auto file = std::make_shared<Hdf5File>(Hdf5File::open(path));
  const std::string name = choose_dataset(*file, options.dataset);
  const Hdf5Dataset facts = file->describe(name);
  ActivationSource source =
      describe_source(path, "'" + name + "'", facts.dtype, facts.shape, options);
  source.read = [file, name, width = source.width, dtype = source.dtype](Range rows, void* to) {
    file->read_flattened(name, rows, {to, rows.size() * width, dtype, Device::cpu});
  };
  const size_t slash = name.rfind('/');
  const std::string group = slash == std::string::npos ? "" : name.substr(0, slash + 1);
  source.column = [file, group, rows = source.rows](const std::string& column) {
    return dataset_column(*file, group + column, rows);
  };
  return source;
}

struct SourceKind {
  std::string_view ending;
  ActivationSource (*open)(const std::string&, const SourceOptions&);
};

constexpr SourceKind kKinds[] = {
    {".npy", open_npy},
    {".safetensors", open_safetensors},
    {".h5", open_hdf5},
    {".hdf5", open_hdf5},
};

}  // namespace

ActivationSource open_source(const std::string& path, const SourceOptions& options) {
  for (const SourceKind& kind : kKinds)
    if (path.ends_with(kind.ending)) return kind.open(path, options);
  fail(ExitCode::usage, fmt::format("cannot import '{}': unknown kind of file", path),
       ".npy, .safetensors, .h5 or .hdf5");
}

}  // namespace megadict
