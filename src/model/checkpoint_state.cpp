#include "model/checkpoint_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "data/rows.h"
#include "io/json_file.h"
#include "kernels/screen.h"
#include "model/activations.h"
#include "model/hidden.h"

namespace megadict {

namespace {

constexpr int64_t kMostSteps = int64_t{1} << 53;  // what a double counts; far above any run
constexpr double kLargest = std::numeric_limits<double>::max();
constexpr double kLargestFloat = std::numeric_limits<float>::max();

// Values by their dotted names; refuses what is missing or out of range.
class StateFile {
 public:
  explicit StateFile(const std::string& path) : path_(path), whole_(read_json(path)) {
    if (!whole_.is_object()) refuse("it is not a JSON object");
  }

  [[noreturn]] void refuse(const std::string& why) const {
    fail(ExitCode::bad_data, fmt::format("cannot use '{}': {}", path_, why));
  }

  const nlohmann::json& at(const std::string& name) const {
    const nlohmann::json* value = &whole_;
    for (size_t begin = 0; begin <= name.size();) {
      const size_t end = std::min(name.find('.', begin), name.size());
      value = &member(*value, name.substr(begin, end - begin), name);
      begin = end + 1;
    }
    return *value;
  }

  bool has(const std::string& key) const { return whole_.contains(key); }

  int64_t integer(const std::string& name, int64_t low, int64_t high) const {
    return integer(at(name), name, low, high);
  }

  int64_t integer(const nlohmann::json& value, const std::string& name, int64_t low,
                  int64_t high) const {
    const bool fits =
        value.is_number_unsigned() ? value.get<uint64_t>() <= INT64_MAX : value.is_number_integer();
    if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > high)
      refuse(name, value, fmt::format("an integer, {} to {}", low, high));
    return value.get<int64_t>();
  }

  uint64_t seed() const {
    const nlohmann::json& value = at("seed");
    if (!value.is_number_unsigned()) refuse("seed", value, "an integer, 0 or more");
    return value.get<uint64_t>();
  }

  double positive(const std::string& name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_number() || !(value.get<double>() > 0) || value.get<double>() > kLargest)
      refuse(name, value, "a number above 0");
    return value.get<double>();
  }

  double threshold(const std::string& name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_number() || !(value.get<double>() >= 0) || value.get<double>() > kLargestFloat)
      refuse(name, value, "a number, 0 or more, of 32 bits");
    return value.get<double>();
  }

  bool truth(const std::string& name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_boolean()) refuse(name, value, "true or false");
    return value.get<bool>();
  }

  std::string one_of(const std::string& name, const std::vector<std::string>& allowed) const {
    const nlohmann::json& value = at(name);
    if (!value.is_string() || std::find(allowed.begin(), allowed.end(), value) == allowed.end())
      refuse(name, value, fmt::format("{}", fmt::join(allowed, ", ")));
    return value.get<std::string>();
  }

  const nlohmann::json& member(const nlohmann::json& object, const std::string& key,
                               const std::string& name) const {
    if (!object.is_object() || !object.contains(key)) refuse(name + " is missing");
    return object.at(key);
  }

  [[noreturn]] void refuse(const std::string& name, const nlohmann::json& value,
                           const std::string& allowed) const {
    constexpr size_t kLongest = 60;
    std::string text = value.is_structured() ? std::string("an ") + value.type_name()
                                             : value.dump(-1, ' ', /*ensure_ascii=*/true);
    if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
    refuse(fmt::format("{} is {}; allowed: {}", name, text, allowed));
  }

 private:
  std::string path_;
  nlohmann::json whole_;
};

std::vector<std::string> activation_names() {
  std::vector<std::string> names;
  for (const ActivationFn& activation : all_activations()) names.emplace_back(activation.name);
  return names;
}

void read_hidden(const StateFile& file, ModelConfig& model) {
  if (has_front(model)) {
    const nlohmann::json& widths = file.at("model.hidden");
    if (!widths.is_string()) file.refuse("model.hidden", widths, "widths, as '256,256'");
    model.hidden = widths;
    try {
      hidden_widths(model, file.integer("d", 1, kMostWidth));
    } catch (const Error& error) {
      file.refuse(error.what());
    }
  }
  if (has_back(model)) model.decoder_norm = file.truth("model.decoder_norm");
}

ModelConfig model_of(const StateFile& file) {
  ModelConfig model;
  model.n_latents = file.integer("n_latents", 1, kMostLatents);
  model.encoder = file.one_of("model.encoder", {std::begin(kEncoders), std::end(kEncoders)});
  model.activation = file.one_of("model.activation", activation_names());
  model.decoder = file.one_of("model.decoder", {std::begin(kDecoders), std::end(kDecoders)});
  // The others carry a k that nothing reads.
  const bool has_k = activation_named(model.activation).has_k;
  const int64_t most = has_k ? model.n_latents : kMostLatents;
  model.k = file.integer("model.k", 1, most);
  read_hidden(file, model);
  return model;
}

// A number for each part, or none at all: checkpoints of older versions have none.
std::vector<double> numbers_of(const StateFile& file, const std::string& name, size_t parts,
                               double low, double high) {
  if (!file.has("screen")) return {};
  const nlohmann::json& list = file.at(name);
  if (!list.is_array() || list.size() != parts)
    file.refuse(name, list, fmt::format("a list of {} numbers", parts));
  std::vector<double> numbers;
  for (const nlohmann::json& value : list) {
    if (!value.is_number() || !(value.get<double>() >= low) || !(value.get<double>() <= high))
      file.refuse(name, value, fmt::format("numbers from {:g} to {:g}", low, high));
    numbers.push_back(value.get<double>());
  }
  return numbers;
}

std::vector<CheckpointPart> parts_of(const StateFile& file, int64_t n) {
  const nlohmann::json& list = file.at("parts");
  if (!list.is_array() || list.empty()) file.refuse("parts", list, "a list of one or more");
  std::vector<CheckpointPart> parts;
  int64_t next = 0;
  for (const nlohmann::json& part : list) {
    const std::string name = fmt::format("parts[{}]", parts.size());
    const auto latent = [&](const std::string& key) {
      const std::string full = name + "." + key;
      return file.integer(file.member(part, key, full), full, 0, n);
    };
    const Range latents{latent("begin"), latent("end")};
    if (latents.begin != next || latents.end < latents.begin)
      file.refuse(fmt::format("{} holds latents {} to {}; allowed: from {} on, up to {}", name,
                              latents.begin, latents.end, next, n));
    const nlohmann::json& path = file.member(part, "file", name + ".file");
    if (!path.is_string() || path.get_ref<const std::string&>().empty() ||
        path.get_ref<const std::string&>().find_first_of(std::string("/\0", 2)) !=
            std::string::npos)
      file.refuse(name + ".file", path, "the name of a file in the same folder");
    parts.push_back({path.get<std::string>(), latents});
    next = latents.end;
  }
  if (next != n) file.refuse(fmt::format("the parts hold {} of {} latents", next, n));
  return parts;
}

}  // namespace

nlohmann::ordered_json model_json(const ModelConfig& model) {
  nlohmann::ordered_json json = {{"encoder", model.encoder},
                                 {"activation", model.activation},
                                 {"decoder", model.decoder},
                                 {"k", model.k}};
  if (has_front(model)) json["hidden"] = model.hidden;
  if (has_back(model)) json["decoder_norm"] = model.decoder_norm;
  return json;
}

CheckpointState read_checkpoint_state(const std::string& path) {
  const StateFile file(path);
  file.one_of("format", {kCheckpointFormat});
  CheckpointState state;
  state.model = model_of(file);
  state.d = file.integer("d", 1, kMostWidth);
  state.seed = file.seed();
  state.step = file.integer("step", 0, kMostSteps);
  state.tokens = file.integer("tokens", 0, kMostSteps);
  if (file.has("resampled_at"))
    state.resampled_at = file.integer("resampled_at", 0, std::max<int64_t>(state.step - 1, 0));
  state.var_total = file.positive("var_total");
  state.scale = file.positive("normalize.scale");
  state.centred = file.truth("normalize.centred");
  if (activation_named(state.model.activation).whole_batch) {
    state.threshold = file.threshold("threshold");
    state.threshold_average =
        file.has("threshold_average") ? file.threshold("threshold_average") : state.threshold;
  }
  state.data = file.at("data");
  if (!state.data.is_object()) file.refuse("data", state.data, "an object");
  state.parts = parts_of(file, state.model.n_latents);
  if (file.has("mesh") && file.at("mesh").is_string()) state.mesh = file.at("mesh");
  const size_t parts = state.parts.size();
  state.screen_windows =
      numbers_of(file, "screen.windows", parts, Screen::kWindow, Screen::kWidestWindow);
  state.screen_thresholds = numbers_of(file, "screen.thresholds", parts, 0, kLargestFloat);
  return state;
}

}  // namespace megadict
