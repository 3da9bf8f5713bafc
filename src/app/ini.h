// INI files with line numbers (which Boost's reader does not give).
#pragma once

#include <string>
#include <vector>

namespace megadict {

struct IniEntry {
  std::string name;   // "model.k"
  std::string value;  // without surrounding blanks and comment; may be empty
  int line = 0;
};

// `[section]` / `name = value`; `#` or `;` starts a comment at the start of a line or after a
// blank. Before the first section names are taken as they are. Exit 2 (agreed), naming file and
// line: unreadable file, a line that is neither, the same name twice.
std::vector<IniEntry> read_ini(const std::string& path);

}  // namespace megadict
