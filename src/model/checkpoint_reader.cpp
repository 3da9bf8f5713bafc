#include "model/checkpoint_reader.h"

#include <fmt/format.h>

#include "base/error.h"
#include "io/json_file.h"

namespace megadict {

namespace {

void refuse_odd_numbers(const std::string& path, const nlohmann::json& state) {
  const auto step = state.at("step").get<int64_t>(), tokens = state.at("tokens").get<int64_t>();
  const auto variance = state.at("var_total").get<double>();
  const auto scale = state.at("normalize").at("scale").get<double>();
  if (step < 0 || tokens < 0 || !(variance > 0) || !(scale > 0))
    fail(ExitCode::bad_data,
         fmt::format("cannot use '{}': step {}, tokens {}, var_total {}, normalize.scale {}", path,
                     step, tokens, variance, scale));
}

}  // namespace

CheckpointReader::CheckpointReader(const std::string& folder) : folder_(folder) {
  const std::string path = folder + "/state.json";
  state_ = read_json(path);
  try {
    n_ = state_.at("n_latents").get<int64_t>();
    d_ = state_.at("d").get<int64_t>();
    refuse_odd_numbers(path, state_);
    int64_t next = 0;
    for (const auto& part : state_.at("parts")) {
      const Range latents{part.at("begin").get<int64_t>(), part.at("end").get<int64_t>()};
      if (latents.begin != next || latents.end < latents.begin)
        fail(ExitCode::bad_data, fmt::format("'{}': the parts do not cover latent {}", path, next));
      next = latents.end;
      parts_.push_back(
          {latents, SafetensorsFile::open(folder + "/" + part.at("file").get<std::string>())});
    }
    if (next != n_)
      fail(ExitCode::bad_data,
           fmt::format("'{}': the parts hold {} of {} latents", path, next, n_));
  } catch (const nlohmann::json::exception& e) {
    fail(ExitCode::bad_data, fmt::format("'{}' is not a checkpoint's state: {}", path, e.what()));
  }
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
    part.file.read_rows(entry, {first, first + wanted.size()}, {out, count, to.dtype, Device::cpu});
    out += static_cast<size_t>(count) * size_of(to.dtype);
  }
}

void CheckpointReader::read(const std::string& name, BufferView to) const {
  const SafetensorsEntry& entry = parts_.front().file.at(name);
  if (entry.elements() != to.count)
    fail(ExitCode::bad_data,
         fmt::format("'{}': {} has {} elements, expected {}", parts_.front().file.path(), name,
                     entry.elements(), to.count));
  parts_.front().file.read(entry, to);
}

}  // namespace megadict
