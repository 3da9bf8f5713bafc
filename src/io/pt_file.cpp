#include "io/pt_file.h"

#include <fmt/format.h>

#include <numeric>
#include <set>

#include "base/error.h"
#include "io/pickle.h"

namespace megadict {

namespace {

constexpr int64_t kMaxPickleBytes = 64 << 20;
constexpr int kMostLevels = 4;  // of dictionaries within dictionaries
constexpr size_t kMostNames = 1 << 16;

[[noreturn]] void refuse(const std::string& path, const std::string& why,
                         const std::string& hint = "") {
  fail(ExitCode::bad_data, fmt::format("cannot read '{}' as a PyTorch file: {}", path, why), hint);
}

// The folder that all records lie in: "archive/" of "archive/data.pkl".
std::string root_of(const ZipFile& zip) {
  constexpr std::string_view kPickle = "data.pkl";
  for (const ZipEntry& entry : zip.entries())
    if (entry.name.ends_with(kPickle))
      return entry.name.substr(0, entry.name.size() - kPickle.size());
  refuse(zip.path(), "it holds no data.pkl", "torch.save of PyTorch 1.6 or newer writes one");
}

// Element `i` of a row-major walk lies here, relative to the tensor's first.
class Strided {
 public:
  explicit Strided(const PtTensor& tensor) : tensor_(tensor), index_(tensor.shape.size()) {}
  int64_t position() const { return position_; }
  void advance() {
    for (size_t i = tensor_.shape.size(); i > 0; --i) {
      position_ += tensor_.strides[i - 1];
      if (++index_[i - 1] < tensor_.shape[i - 1]) return;
      position_ -= tensor_.shape[i - 1] * tensor_.strides[i - 1];
      index_[i - 1] = 0;
    }
  }

 private:
  const PtTensor& tensor_;
  std::vector<int64_t> index_;
  int64_t position_ = 0;
};

// Elements from the first to behind the last.
int64_t extent_of(const PtTensor& tensor) {
  if (tensor.elements() == 0) return 0;
  int64_t last = 0;
  for (size_t i = 0; i < tensor.shape.size(); ++i)
    last += (tensor.shape[i] - 1) * tensor.strides[i];
  return last + 1;
}

void integers_to_float(const std::byte* from, DType dtype, int64_t count, float* to) {
  const auto convert = [&](const auto* values) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(values[i]);
  };
  if (dtype == DType::i32) return convert(reinterpret_cast<const int32_t*>(from));
  if (dtype == DType::i64) return convert(reinterpret_cast<const int64_t*>(from));
  convert(reinterpret_cast<const uint8_t*>(from));
}

bool is_integer(DType dtype) {
  return dtype == DType::i32 || dtype == DType::i64 || dtype == DType::u8;
}

// The values of a pickle by their names.
class Names {
 public:
  Names(const ZipFile& zip, const Pickle& pickle, const std::string& root)
      : zip_(zip), pickle_(pickle), root_(root) {}

  std::vector<PtTensor> tensors;
  std::map<std::string, std::string> texts;

  void walk(int64_t index, const std::string& prefix, int level) {
    const PickleValue& dict = value(index);
    if (level > kMostLevels) refuse(zip_.path(), "dictionaries within dictionaries, too deep");
    for (size_t i = 0; i + 1 < dict.members.size(); i += 2) {
      const PickleValue& key = value(dict.members[i]);
      if (key.kind != PickleValue::Kind::text) continue;
      if (prefix.size() + key.text.size() > kLongestPickleName)
        refuse(zip_.path(), fmt::format("a name of more than {} bytes", kLongestPickleName));
      const std::string name = prefix + key.text;
      if (seen_.size() >= kMostNames) refuse(zip_.path(), "too many names");
      if (!seen_.insert(name).second) refuse(zip_.path(), fmt::format("'{}' appears twice", name));
      add(name, dict.members[i + 1], level);
    }
  }

 private:
  const PickleValue& value(int64_t index) const {
    return pickle_.values[static_cast<size_t>(index)];
  }
  void add(const std::string& name, int64_t index, int level) {
    const PickleValue& item = value(index);
    if (item.kind == PickleValue::Kind::tensor) return add_tensor(name, item);
    if (item.kind == PickleValue::Kind::dict) return walk(index, name + "/", level + 1);
    if (item.kind == PickleValue::Kind::text && item.text.size() <= kLongestPickleName)
      texts[name] = item.text;
    if (item.kind == PickleValue::Kind::integer) texts[name] = fmt::format("{}", item.integer);
    if (item.kind == PickleValue::Kind::number) texts[name] = fmt::format("{}", item.number);
  }
  void add_tensor(const std::string& name, const PickleValue& tensor) {
    const PickleValue& storage = value(tensor.storage);
    const ZipEntry* record = zip_.find(root_ + "data/" + storage.text);
    if (record == nullptr)
      refuse(zip_.path(),
             fmt::format("'{}' lies in a record '{}' that is missing", name, storage.text));
    const auto size = static_cast<int64_t>(size_of(storage.dtype));
    if (storage.integer > record->bytes.size() / size)
      refuse(zip_.path(),
             fmt::format("'{}' needs {} elements of {}, its record has {} bytes", name,
                         storage.integer, name_of(storage.dtype), record->bytes.size()));
    tensors.push_back({name, storage.dtype, tensor.shape, tensor.strides, tensor.offset, *record});
  }

  const ZipFile& zip_;
  const Pickle& pickle_;
  const std::string& root_;
  std::set<std::string> seen_;
};

}  // namespace

int64_t PtTensor::elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

PtFile PtFile::open(const std::string& path) {
  PtFile opened{ZipFile::open(path)};
  const std::string root = root_of(opened.zip_);
  if (const ZipEntry* order = opened.zip_.find(root + "byteorder"))
    if (opened.zip_.read_text(*order, 64) != "little") refuse(path, "its numbers are big-endian");
  const ZipEntry& entry = *opened.zip_.find(root + "data.pkl");
  const Pickle pickle = parse_pickle(opened.zip_.read_text(entry, kMaxPickleBytes), path);
  if (pickle.values[static_cast<size_t>(pickle.root)].kind != PickleValue::Kind::dict)
    refuse(path, "it holds no dictionary of tensors", "torch.save(model.state_dict(), ...)");
  Names names(opened.zip_, pickle, root);
  names.walk(pickle.root, "", 1);
  opened.tensors_ = std::move(names.tensors);
  opened.texts_ = std::move(names.texts);
  return opened;
}

void PtFile::read_as_float(const PtTensor& tensor, float* to) const {
  const auto size = static_cast<int64_t>(size_of(tensor.dtype));
  const int64_t extent = extent_of(tensor);
  std::vector<std::byte> raw(static_cast<size_t>(extent * size));
  zip_.read(tensor.record, {tensor.offset * size, (tensor.offset + extent) * size}, raw.data());
  std::vector<float> values(static_cast<size_t>(extent));
  if (is_integer(tensor.dtype))
    integers_to_float(raw.data(), tensor.dtype, extent, values.data());
  else
    convert_to_float(raw.data(), tensor.dtype, extent, values.data());
  Strided walk(tensor);
  for (int64_t i = 0; i < tensor.elements(); ++i, walk.advance())
    to[i] = values[static_cast<size_t>(walk.position())];
}

void write_pt(const std::string& path, const PtToWrite& what) {
  PickleWriter pickle;
  pickle.begin_dict();
  for (size_t i = 0; i < what.tensors.size(); ++i) {
    const TensorToWrite& tensor = what.tensors[i];
    pickle.add_text(tensor.name);
    pickle.add_tensor(tensor.shape, tensor.data.dtype, fmt::format("{}", i));
  }
  for (const auto& [name, text] : what.texts) {
    pickle.add_text(name);
    pickle.add_text(text);
  }
  for (const std::string& name : what.empty_dicts) {
    pickle.add_text(name);
    pickle.begin_dict();
    pickle.end_dict();
  }
  pickle.end_dict();
  ZipWriter zip(path);
  zip.add("archive/data.pkl", pickle.finish());
  zip.add("archive/byteorder", "little");
  for (size_t i = 0; i < what.tensors.size(); ++i)
    zip.add(fmt::format("archive/data/{}", i), {what.tensors[i].data});
  zip.add("archive/version", "3\n");
  zip.commit();
}

}  // namespace megadict
