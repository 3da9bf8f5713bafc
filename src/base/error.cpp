#include "base/error.h"

#include <algorithm>
#include <filesystem>
#include <new>
#include <numeric>

namespace megadict {

namespace {

// Paths and file contents may hold anything; a message is one line of readable length.
std::string one_line(const std::string& text) {
  constexpr size_t kLongest = 12000;  // two paths as long as they may be
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f)
      out += c;
    else
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
  }
  return text.size() > kLongest ? out + "..." : out;
}

}  // namespace

// As one line from the start: what() ends at a zero byte.
Error::Error(ExitCode code, const std::string& what, std::string hint, bool agreed)
    : std::runtime_error(one_line(what)), code_(code), hint_(std::move(hint)), agreed_(agreed) {}

std::string Error::line() const {
  return one_line(hint_.empty() ? std::string(what()) : std::string(what()) + ". hint: " + hint_);
}

Error error_of(const std::exception& thrown) {
  if (const auto* error = dynamic_cast<const Error*>(&thrown)) return *error;
  if (const auto* error = dynamic_cast<const std::filesystem::filesystem_error*>(&thrown))
    return Error(ExitCode::error,
                 "cannot use '" + error->path1().string() + "': " + error->code().message());
  const std::string what = thrown.what();
  // LibTorch's allocators have exceptions of their own, of many lines; the first one says it.
  if (dynamic_cast<const std::bad_alloc*>(&thrown) != nullptr ||
      what.find("DefaultCPUAllocator") != std::string::npos ||
      what.find("CUDA out of memory") != std::string::npos)
    return Error(ExitCode::error, "out of memory", "megadict plan shows what a run needs");
  return Error(ExitCode::error, "unexpected: " + what.substr(0, what.find('\n')));
}

void fail(ExitCode code, const std::string& what, const std::string& hint) {
  throw Error(code, what, hint);
}

void fail_agreed(ExitCode code, const std::string& what, const std::string& hint) {
  throw Error(code, what, hint, true);
}

namespace {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  size_t best = std::max<size_t>(2, name.size() / 3) + 1;
  std::string nearest;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace megadict
