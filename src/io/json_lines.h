// JSON lines: one object a line, appended and flushed to the system at once, so that a reader (or a
// crash) finds whole lines. Include <nlohmann/json.hpp> to use the values.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace megadict {

// Opens for appending; a last line that a crash cut short is removed first.
class JsonLines {
 public:
  explicit JsonLines(const std::string& path);
  ~JsonLines();
  JsonLines(const JsonLines&) = delete;
  JsonLines& operator=(const JsonLines&) = delete;

  // One write call. Numbers that are not finite become null. Exit 1 when the disk is full.
  void append(const nlohmann::ordered_json& object);

 private:
  std::string path_;
  int descriptor_ = -1;
};

// All whole lines; a line cut short at the end is ignored. Exit 3 with the line number for a line
// that is not an object.
std::vector<nlohmann::ordered_json> read_json_lines(const std::string& path);

// Rewrites the file (atomically) with the lines that `keep` accepts: a resumed run removes what was
// logged after its checkpoint. Must not be called while a JsonLines is open on the file.
void filter_json_lines(const std::string& path,
                       const std::function<bool(const nlohmann::ordered_json&)>& keep);

}  // namespace megadict
