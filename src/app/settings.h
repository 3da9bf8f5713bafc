// A configuration with the source of each value, and the checks that span fields.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/config.h"
#include "app/options.h"

namespace megadict {

struct Settings {
  Config config;
  Sources sources;  // names without an entry are defaults
};

// What is known once the data set and the launch are.
struct DataFacts {
  int64_t width = 0;
  int64_t rows = 0;    // that take part; 0 = unknown (`plan` without data)
  int64_t steps = 0;   // of the whole run; 0 = unknown
  int64_t tokens = 0;  // rows of all these steps
  int ranks = 1;
  int64_t sample_bytes = 4;  // of one element of x in the shards
};

// Combinations that need no data. Exit 2 (agreed), naming both fields.
void check_config(const Config& config);

// Combinations that need the data's size; resolves every "0 = ..." that depends on it and notes
// it as "resolved". Exit 2 (agreed). What depends on an unknown fact is left as it is.
void check_against_data(Settings& settings, const DataFacts& facts);

// A sentence for each thing that is allowed and probably not meant: a value that somebody set and
// this configuration does not use, a warm-up that is longer than the run.
std::vector<std::string> remarks_on(const Settings& settings, const DataFacts& facts);

// "default", "command line", "configs/a.ini:12", "resolved".
std::string source_of(const Settings& settings, const std::string& name);

}  // namespace megadict
