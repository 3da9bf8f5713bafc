// megadict export: a dictionary in another tool's layout (model/formats.h). One process.
#include <fmt/format.h>

#include "app/commands.h"
#include "app/options.h"
#include "base/error.h"
#include "base/log.h"
#include "model/formats.h"
#include "model/saved.h"

namespace megadict {

namespace {

struct ExportOptions {
  std::string run, checkpoint, format, out, scale = "unit", weights = "last";
};

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const Format& format : all_formats()) names.emplace_back(format.name);
  return names;
}

OptionSet options(ExportOptions& own) {
  return {
      .command = "export",
      .summary = "Writes a dictionary for another tool: it takes raw rows and returns raw rows.",
      .fields = {{"run.dir", &own.run, "", "folder of the run, or of another tool's dictionary"},
                 {"checkpoint", &own.checkpoint, "", "this one instead of the newest weights"},
                 {"format", &own.format, "", "the tool", one_of(format_names())},
                 {"out", &own.out, "", "folder to make"},
                 {"scale", &own.scale, "",
                  "a data scale s goes into the latents (z / s) or into the weights",
                  one_of({"unit", "trained"})},
                 {"weights", &own.weights, "", "the last ones or their average",
                  one_of({"last", "ema"})}},
      .required = {"run.dir", "format", "out"}};
}

}  // namespace

std::string help_export() {
  ExportOptions own;
  return help_text(options(own));
}

int run_export(Launch& launch, const Args& args) {
  ExportOptions own;
  read_options(options(own), args);
  if (launch.facts().ranks > 1)
    fail_agreed(ExitCode::usage, fmt::format("megadict export runs as one process, not as {} ranks",
                                             launch.facts().ranks));
  const std::string folder = find_checkpoint(own.checkpoint.empty() ? own.run : own.checkpoint);
  const Format& format = format_named(own.format);
  const ExportScale scale = export_scale_named(own.scale);
  // From one tool to another, also what training has no model of.
  if (own.weights == "last" && foreign_format(folder) != nullptr)
    export_dictionary(load_plain(folder), format, scale, own.out);
  else
    export_dictionary(load_saved(folder, own.weights), format, scale, own.out);
  say(fmt::format("wrote {} as {} to {}", folder, own.format, own.out));
  return 0;
}

}  // namespace megadict
