// megadict import: another tool's dictionary (model/formats.h) as a checkpoint of ours. One
// process.
#include <fmt/format.h>

#include <algorithm>

#include "app/commands.h"
#include "app/options.h"
#include "base/error.h"
#include "base/log.h"
#include "model/activations.h"
#include "model/formats.h"
#include "model/saved.h"

namespace megadict {

namespace {

struct ImportOptions {
  std::string from, format = "auto", out;
  int64_t k = 0;
};

std::vector<std::string> format_names() {
  std::vector<std::string> names = {"auto"};
  for (const Format& format : all_formats()) names.emplace_back(format.name);
  return names;
}

OptionSet options(ImportOptions& own) {
  return {.command = "import",
          .summary =
              "Turns another tool's dictionary into a checkpoint, for eval, export and "
              "model.init_from.",
          .fields = {{"from", &own.from, "", "folder of the dictionary, or its .pt or .npz file"},
                     {"format", &own.format, "", "the tool; auto = by the names of the files",
                      one_of(format_names())},
                     {"model.k", &own.k, "latents",
                      "of a batchtopk whose files do not say it; 0 = they do",
                      between(0, kMostLatents)},
                     {"out", &own.out, "", "folder to make"}},
          .required = {"from", "out"}};
}

// Only training reads it, but a checkpoint without one would be no checkpoint.
void settle_k(const ImportOptions& own, SavedDictionary& saved) {
  ModelConfig& config = saved.dictionary.config;
  if (!activation_named(config.activation).has_k) {
    config.k = std::max<int64_t>(config.k, 1);
    return;
  }
  if (own.k > saved.dictionary.n)
    fail_agreed(ExitCode::usage, fmt::format("--model.k {} is above the {} latents of '{}'", own.k,
                                             saved.dictionary.n, own.from));
  if (config.k > 0 && own.k > 0 && own.k != config.k)
    fail_agreed(ExitCode::usage, fmt::format("--model.k is {}, the files in '{}' say {}", own.k,
                                             own.from, config.k));
  if (config.k == 0) config.k = own.k;
  if (config.k == 0)
    fail_agreed(ExitCode::usage,
                fmt::format("'{}' does not say how many latents of a row are active", own.from),
                "--model.k K");
}

}  // namespace

std::string help_import() {
  ImportOptions own;
  return help_text(options(own));
}

int run_import(Launch& launch, const Args& args) {
  ImportOptions own;
  read_options(options(own), args);
  if (launch.facts().ranks > 1)
    fail_agreed(ExitCode::usage, fmt::format("megadict import runs as one process, not as {} ranks",
                                             launch.facts().ranks));
  const Format* format =
      own.format == "auto" ? foreign_format(own.from) : &format_named(own.format);
  SavedDictionary saved = load_foreign(own.from, format);  // refuses what no format knows
  settle_k(own, saved);
  write_saved(saved, own.out);
  say(fmt::format("wrote {} ({}: {}, {} latents of width {}) to {}", own.from, format->name,
                  saved.dictionary.config.activation, saved.dictionary.n, saved.dictionary.d,
                  own.out));
  return 0;
}

}  // namespace megadict
