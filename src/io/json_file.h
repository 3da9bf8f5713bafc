// JSON files, whole: settings, state, facts. Include <nlohmann/json.hpp> to use the values.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace megadict {

// Exit 3, with the path and the place, for what is not JSON.
nlohmann::json read_json(const std::string& path);
// Atomic, indented, ends in a newline.
void write_json(const std::string& path, const nlohmann::json& value);
void write_json(const std::string& path, const nlohmann::ordered_json& value);

}  // namespace megadict
