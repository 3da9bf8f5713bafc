// The command line and INI files of every command: `--name value` or `--name=value`, and where a
// command takes it `--config FILE` with [section] headers and name = value lines.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "app/field.h"

namespace megadict {

// Where each value that is not a default came from: "command line", "configs/a.ini:12", "resolved".
using Sources = std::map<std::string, std::string>;

struct OptionSet {
  std::string command;  // "train", "data synth": for messages and help
  std::string summary;  // one sentence
  std::vector<Field> fields;
  std::vector<Field> positional = {};       // arguments without a flag, in order; may be left out
  bool config_file = false;                 // takes --config FILE
  std::vector<std::string> required = {};   // names that must be given
  std::vector<std::string> elsewhere = {};  // names a config file may hold that are not used here
};

// Stores everything given in `args` (after the command's name) and says where it came from. The
// command line wins over the file. Exit 2 (agreed) on the first thing that is wrong: unknown or
// repeated name, no value, a value that is not allowed, a file that cannot be read.
Sources read_options(const OptionSet& set, const std::vector<std::string>& args);

// --help or -h anywhere.
bool wants_help(const std::vector<std::string>& args);

// Usage, then one line per field: name, default, unit, help, what is allowed.
std::string help_text(const OptionSet& set);

}  // namespace megadict
