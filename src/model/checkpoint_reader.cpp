#include "model/checkpoint_reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "data/rows.h"
#include "model/hidden.h"

namespace megadict {

namespace {

// Block by block: each is looked at while it is in the cache.
void read_finite(const SafetensorsFile& file, const SafetensorsEntry& entry, Range elements,
                 BufferView to) {
  constexpr int64_t kBlock = 1 << 18;
  auto* out = static_cast<std::byte*>(to.data);
  for (int64_t begin = elements.begin; begin < elements.end; begin += kBlock) {
    const Range block{begin, std::min(begin + kBlock, elements.end)};
    file.read_elements(entry, block, {out, block.size(), to.dtype, Device::cpu});
    const int64_t bad = to.dtype == DType::f32 ? first_non_finite(out, to.dtype, block.size()) : -1;
    if (bad >= 0)
      fail(ExitCode::bad_data,
           fmt::format("cannot use '{}': {} holds values that are not finite (element {})",
                       file.path(), entry.name, begin + bad));
    out += static_cast<size_t>(block.size()) * size_of(to.dtype);
  }
}

}  // namespace

CheckpointReader::CheckpointReader(const std::string& folder)
    : folder_(folder), state_(read_checkpoint_state(folder + "/state.json")) {
  for (const CheckpointPart& part : state_.parts) {
    parts_.push_back({part.latents, SafetensorsFile::open(folder + "/" + part.file)});
    check_tensors(parts_.back());
  }
  const bool mean = parts_.front().file.find("normalize.mean") != nullptr;
  if (mean != state_.centred)
    fail(ExitCode::bad_data,
         fmt::format("cannot use '{}/state.json': normalize.centred is {}, but '{}' holds {} "
                     "normalize.mean",
                     folder, state_.centred, parts_.front().file.path(), mean ? "a" : "no"));
}

// What state.json says of the weights, before anything of that size is allocated.
void CheckpointReader::check_tensors(const Part& part) const {
  const auto check = [&](const std::string& name, const std::vector<int64_t>& expected) {
    const SafetensorsEntry& tensor = part.file.at(name);
    if (tensor.shape != expected)
      fail(ExitCode::bad_data,
           fmt::format("cannot use '{}': {} is [{}], state.json says [{}]", part.file.path(), name,
                       fmt::join(tensor.shape, ","), fmt::join(expected, ",")));
  };
  check("W_enc", {part.latents.size(), encoder_width(state_.model, d())});
  if (parts_.size() == 1)  // the first part's
    for (const HiddenParameter& parameter : hidden_parameters(state_.model, d()))
      check(parameter.name, parameter.shape);
  const bool tied = state_.model.decoder == "tied", own = part.file.find("W_dec") != nullptr;
  if (tied == own)
    fail(ExitCode::bad_data,
         fmt::format("cannot use '{}/state.json': model.decoder is \"{}\", but '{}' holds {} W_dec",
                     folder_, state_.model.decoder, part.file.path(), own ? "a" : "no"));
}

bool CheckpointReader::has(const std::string& name) const {
  for (const Part& part : parts_)
    if (part.file.find(name)) return true;
  return false;
}

void CheckpointReader::read_rows(const std::string& name, Range latents, BufferView to) const {
  const int64_t row_elements = latents.empty() ? 0 : to.count / latents.size();
  auto* out = static_cast<std::byte*>(to.data);
  for (const Part& part : parts_) {
    const Range wanted = intersect(part.latents, latents);
    if (wanted.empty()) continue;
    const SafetensorsEntry& entry = part.file.at(name);
    const int64_t first = wanted.begin - part.latents.begin;
    if (entry.shape.empty() || entry.shape[0] != part.latents.size() ||
        entry.elements() != part.latents.size() * row_elements)
      fail(ExitCode::bad_data,
           fmt::format("'{}': {} has {} elements, expected {} rows of {}", part.file.path(), name,
                       entry.elements(), part.latents.size(), row_elements));
    const int64_t count = wanted.size() * row_elements;
    read_finite(part.file, entry, {first * row_elements, first * row_elements + count},
                {out, count, to.dtype, Device::cpu});
    out += static_cast<size_t>(count) * size_of(to.dtype);
  }
}

void CheckpointReader::read(const std::string& name, BufferView to) const {
  const SafetensorsFile& file = parts_.front().file;
  const SafetensorsEntry& entry = file.at(name);
  if (entry.elements() != to.count)
    fail(ExitCode::bad_data, fmt::format("'{}': {} has {} elements, expected {}", file.path(), name,
                                         entry.elements(), to.count));
  read_finite(file, entry, {0, to.count}, to);
}

Normalization CheckpointReader::normalization() const {
  Normalization out{state_.scale, {}};
  if (!state_.centred) return out;
  out.mean.resize(static_cast<size_t>(d()));
  read("normalize.mean", view_of(out.mean.data(), d()));
  return out;
}

}  // namespace megadict
