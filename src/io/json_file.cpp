#include "io/json_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/file.h"

namespace megadict {

namespace {

constexpr int kDeepest = 64;

}  // namespace

bool nests_too_deep(std::string_view text) {
  int depth = 0;
  bool in_text = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_text && c == '\\')
      ++i;
    else if (c == '"')
      in_text = !in_text;
    else if (!in_text && (c == '[' || c == '{') && ++depth > kDeepest)
      return true;
    else if (!in_text && (c == ']' || c == '}'))
      --depth;
  }
  return false;
}

nlohmann::json read_json(const std::string& path, int64_t max_bytes) {
  const std::string text = read_file(path, max_bytes);
  if (nests_too_deep(text))
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': more than {} brackets within each other", path, kDeepest));
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': not JSON at byte {}", path, error.byte));
  } catch (const nlohmann::json::out_of_range&) {
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': a number fits no double", path));
  }
}

namespace {

// Texts from files and the command line need not be UTF-8: what is not becomes U+FFFD.
template <class Json>
std::string pretty(const Json& value) {
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

void write_json(const std::string& path, const nlohmann::json& value) {
  write_file_atomic(path, pretty(value));
}

void write_json(const std::string& path, const nlohmann::ordered_json& value) {
  write_file_atomic(path, pretty(value));
}

}  // namespace megadict
