#include "io/json_lines.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "io/file.h"
#include "io/json_file.h"

namespace megadict {

JsonLines::JsonLines(const std::string& path) : path_(path) {
  if (file_exists(path)) {
    const std::string text = read_file(path);
    const size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
    if (whole != text.size() && ::truncate(path.c_str(), static_cast<off_t>(whole)) != 0)
      fail(ExitCode::error, fmt::format("cannot write '{}': {}", path, std::strerror(errno)));
  }
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0)
    fail(ExitCode::error, fmt::format("cannot write '{}': {}", path, std::strerror(errno)));
}

JsonLines::~JsonLines() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void JsonLines::append(const nlohmann::ordered_json& object) {
  const std::string line =
      object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  write_fully(descriptor_, line.data(), line.size(), path_);
}

std::vector<nlohmann::ordered_json> read_json_lines(const std::string& path) {
  const std::string text = read_file(path);
  std::vector<nlohmann::ordered_json> lines;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    const auto line = std::string_view(text).substr(begin, end - begin);
    auto object = nests_too_deep(line)
                      ? nlohmann::ordered_json()
                      : nlohmann::ordered_json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object())
      fail(ExitCode::bad_data,
           fmt::format("cannot read '{}': line {} is not a JSON object", path, lines.size() + 1));
    lines.push_back(std::move(object));
  }
  return lines;
}

void filter_json_lines(const std::string& path,
                       const std::function<bool(const nlohmann::ordered_json&)>& keep) {
  AtomicFile file(path);
  for (const nlohmann::ordered_json& object : read_json_lines(path))
    if (keep(object)) file.write(object.dump() + "\n");
  file.commit();
}

}  // namespace megadict
