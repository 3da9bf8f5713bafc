#include "io/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"

namespace megadict {

namespace {

constexpr size_t kLongestName = 1024;
constexpr size_t kMostTexts = 1 << 16;  // each takes far more memory than its bytes

struct StoredType {
  std::string_view name;
  int64_t bytes;
  std::optional<DType> dtype;
};

constexpr StoredType kStoredTypes[] = {
    {"F64", 8, DType::f64},    {"F32", 4, DType::f32},       {"F16", 2, DType::f16},
    {"BF16", 2, DType::bf16},  {"I64", 8, DType::i64},       {"I32", 4, DType::i32},
    {"U64", 8, DType::u64},    {"U32", 4, DType::u32},       {"U16", 2, DType::u16},
    {"U8", 1, DType::u8},      {"I16", 2, std::nullopt},     {"I8", 1, std::nullopt},
    {"BOOL", 1, std::nullopt}, {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt},
};

// Builds entries straight from the parser's events: a document tree of a hostile header (say, a
// hundred million brackets) would be far larger than the header itself.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::string problem;
  std::vector<SafetensorsEntry> entries;
  SafetensorsMetadata metadata;

  bool start_object(size_t) override {
    ++depth_;
    if (depth_ == 1 && !array_) return true;
    if (depth_ == 2 && !array_ && !key_.empty()) {
      in_metadata_ = key_ == "__metadata__";
      if (!in_metadata_) entries.push_back({key_, "", std::nullopt, {}, -1, -1});
      seen_fields_.clear();
      return true;
    }
    return refuse("unexpected object");
  }
  bool end_object() override {
    if (depth_-- == 2 && !in_metadata_) return check_complete(entries.back());
    return true;
  }
  bool key(string_t& name) override {
    key_ = name;
    if (depth_ == 1) {
      if (name.empty()) return refuse("a tensor without a name");
      if (name.size() > kLongestName)
        return refuse(fmt::format("a tensor's name of {} bytes", name.size()));
      return names_.insert(name).second || refuse("'" + name + "' appears twice");
    }
    return seen_fields_.insert(name).second || refuse("'" + name + "' appears twice");
  }
  bool start_array(size_t) override {
    const bool expected =
        depth_ == 2 && !in_metadata_ && !array_ && (key_ == "shape" || key_ == "data_offsets");
    array_ = true;
    numbers_.clear();
    return expected || refuse("unexpected array");
  }
  bool end_array() override {
    array_ = false;
    SafetensorsEntry& entry = entries.back();
    if (key_ == "shape") {
      entry.shape = numbers_;
      return true;
    }
    if (numbers_.size() != 2) return refuse("data_offsets are not two numbers");
    entry.begin = numbers_[0];
    entry.end = numbers_[1];
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      if (metadata.size() == kMostTexts) return refuse("too many texts in __metadata__");
      return metadata.emplace(key_, value).second;
    }
    if (depth_ != 2 || array_ || key_ != "dtype") return refuse("unexpected text");
    entries.back().stored_dtype = value;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!array_) return refuse("unexpected number");
    if (value > static_cast<uint64_t>(INT64_MAX)) return refuse("a number that is too large");
    if (numbers_.size() == kMaxDims) return refuse("more than 32 dimensions");
    numbers_.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_integer(number_integer_t) override { return refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return refuse("a fraction"); }
  bool null() override { return refuse("unexpected null"); }
  bool boolean(bool) override { return refuse("unexpected true or false"); }
  bool binary(binary_t&) override { return refuse("unexpected bytes"); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return refuse(fmt::format("not JSON at byte {}", position));
  }

 private:
  static constexpr size_t kMaxDims = 32;

  bool refuse(const std::string& what) {
    if (problem.empty()) problem = what;
    return false;
  }
  bool check_complete(const SafetensorsEntry& entry) {
    const bool complete = seen_fields_ == std::set<std::string>{"data_offsets", "dtype", "shape"};
    return complete ||
           refuse(fmt::format("'{}' needs exactly dtype, shape and data_offsets", entry.name));
  }

  int depth_ = 0;
  bool array_ = false, in_metadata_ = false;
  std::string key_;
  std::vector<int64_t> numbers_;
  std::set<std::string> names_, seen_fields_;
};

const StoredType* find_type(std::string_view name) {
  for (const StoredType& type : kStoredTypes)
    if (type.name == name) return &type;
  return nullptr;
}

// Empty text when the entry's span is what its type and shape ask for.
std::string check_entry(SafetensorsEntry& entry) {
  const StoredType* type = find_type(entry.stored_dtype);
  if (type == nullptr)
    return fmt::format("'{}' has the unknown type '{}'", entry.name, entry.stored_dtype);
  entry.dtype = type->dtype;
  int64_t bytes = type->bytes;
  for (int64_t size : entry.shape)
    if (__builtin_mul_overflow(bytes, size, &bytes))
      return fmt::format("the shape of '{}' is too large", entry.name);
  if (entry.begin > entry.end || entry.end - entry.begin != bytes)
    return fmt::format("'{}' takes bytes {} to {}, its shape and type ask for {} bytes", entry.name,
                       entry.begin, entry.end, bytes);
  return "";
}

std::string check_layout(std::vector<SafetensorsEntry>& entries, int64_t data_bytes) {
  for (SafetensorsEntry& entry : entries) {
    std::string problem = check_entry(entry);
    if (!problem.empty()) return problem;
  }
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t next = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != next)
      return fmt::format("'{}' begins at byte {} of the data instead of {}: {}", entry.name,
                         entry.begin, next, entry.begin < next ? "an overlap" : "a hole");
    next = entry.end;
  }
  if (next != data_bytes)
    return fmt::format("the tensors take {} bytes of data, the file holds {}", next, data_bytes);
  return "";
}

}  // namespace

std::string_view safetensors_name_of(DType dtype) {
  for (const StoredType& type : kStoredTypes)
    if (type.dtype == dtype) return type.name;
  fail(ExitCode::error, fmt::format("safetensors has no type for {}", name_of(dtype)));
}

SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_bytes,
                                           const std::string& path) {
  HeaderReader reader;
  const bool parsed = !text.empty() && text[0] == '{' &&
                      nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  std::string problem = reader.problem;
  if (!parsed && problem.empty()) problem = "the header is not a JSON object";
  if (problem.empty()) problem = check_layout(reader.entries, data_bytes);
  if (!problem.empty())
    fail(ExitCode::bad_data, fmt::format("cannot read '{}' as safetensors: {}", path, problem));
  return {std::move(reader.entries), std::move(reader.metadata)};
}

}  // namespace megadict
