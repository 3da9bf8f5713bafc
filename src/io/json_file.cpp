#include "io/json_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/file.h"

namespace megadict {

nlohmann::json read_json(const std::string& path) {
  const std::string text = read_file(path);
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': not JSON at byte {}", path, error.byte));
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
