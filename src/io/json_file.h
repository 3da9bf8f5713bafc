// JSON files, whole: settings, state, facts. Include <nlohmann/json.hpp> to use the values.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace megadict {

// Exit 3, with the path and the place, for what is not JSON or larger than `max_bytes`: a value
// takes up to twenty times its text's memory.
nlohmann::json read_json(const std::string& path, int64_t max_bytes = int64_t{1} << 30);
// Brackets within brackets, deeper than anything of ours: the parser's values are copied and
// written by recursion, which such a text would drive out of the stack.
bool nests_too_deep(std::string_view text);
// Atomic, indented, ends in a newline.
void write_json(const std::string& path, const nlohmann::json& value);
void write_json(const std::string& path, const nlohmann::ordered_json& value);

}  // namespace megadict
