#include "app/saved_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "app/fields.h"
#include "base/error.h"

namespace megadict {

using nlohmann::ordered_json;

namespace {

ordered_json field_json(const Field& field) {
  return std::visit([](const auto* value) { return ordered_json(*value); }, field.target);
}

std::string json_text(const ordered_json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

[[noreturn]] void refuse_file(const std::string& path, const std::string& why) {
  fail_agreed(ExitCode::bad_data, fmt::format("cannot use {}: {}", in_quotes(path), why));
}

bool fits_kind(const Field& field, const ordered_json& value) {
  if (std::holds_alternative<std::string*>(field.target)) return value.is_string();
  if (std::holds_alternative<bool*>(field.target)) return value.is_boolean();
  return value.is_number();
}

// Stores a saved value; exit 3 for one that nobody could have set.
void store(const Field& field, const ordered_json& value, const std::string& path) {
  if (!fits_kind(field, value))
    refuse_file(path, fmt::format("the value of {} is of type {}; allowed: {}", field.name,
                                  value.type_name(), allowed_text(field)));
  if (value == "" && field.allowed.choices.empty()) {  // text that was not set
    std::get<std::string*>(field.target)->clear();
    return;
  }
  try {
    set_field(field, json_text(value), "saved");
  } catch (const Error& error) {
    refuse_file(path, error.what());
  }
}

// The saved record of a field; nothing where the file does not know it.
std::optional<ordered_json> saved_record(const ordered_json& saved, const std::string& path,
                                         const std::string& name) {
  if (!saved.is_object()) refuse_file(path, "it is not a JSON object");
  const auto found = saved.find(name);
  if (found == saved.end()) return std::nullopt;
  if (!found->is_object() || !found->contains("value") || !found->contains("source") ||
      !found->at("source").is_string())
    refuse_file(path, fmt::format("{} holds no value and source", name));
  return *found;
}

}  // namespace

ordered_json config_json(const Settings& settings) {
  Config config = settings.config;
  ordered_json all = ordered_json::object();
  for (const Field& field : fields_of(config))
    all[field.name] = {{"value", field_json(field)}, {"source", source_of(settings, field.name)}};
  return all;
}

void adopt_saved_resolutions(const ordered_json& saved, const std::string& path, Settings& now) {
  Config untouched;
  const std::vector<Field> fields = fields_of(now.config), defaults = fields_of(untouched);
  for (size_t i = 0; i < fields.size(); ++i) {
    const Field& field = fields[i];
    // A default that was typed, as `auto`, is to be resolved as well.
    if (field.on_resume == OnResume::free || field_json(field) != field_json(defaults[i])) continue;
    const auto record = saved_record(saved, path, field.name);
    if (!record || record->at("source") != "resolved") continue;
    store(field, record->at("value"), path);
    now.sources[field.name] = "resolved";
  }
}

std::vector<Difference> compare_for_resume(const ordered_json& saved, const std::string& path,
                                           const Settings& now) {
  Config config = now.config, before_config;
  const std::vector<Field> fields = fields_of(config), before_fields = fields_of(before_config);
  std::vector<Difference> differences;
  for (size_t i = 0; i < fields.size(); ++i) {
    const Field &field = fields[i], &before = before_fields[i];
    if (const auto record = saved_record(saved, path, field.name))
      store(before, record->at("value"), path);
    if (field_json(before) == field_json(field)) continue;
    differences.push_back({field.name, value_text(before), value_text(field), field.on_resume});
  }
  return differences;
}

void refuse_fixed(const std::vector<Difference>& differences, const std::string& path) {
  std::string list;
  for (const Difference& change : differences)
    if (change.on_resume == OnResume::fixed)
      list += fmt::format("{}{} {} -> {}", list.empty() ? "" : ", ", change.name,
                          in_quotes(change.before), in_quotes(change.after));
  if (list.empty()) return;
  fail_agreed(ExitCode::usage,
              fmt::format("cannot resume {}: fixed fields differ: {}", in_quotes(path), list),
              "the same values, or another run.dir");
}

}  // namespace megadict
