#include "app/commands.h"

#include <fmt/format.h>

#include "app/options.h"
#include "base/error.h"
#include "base/log.h"

namespace megadict {

namespace {

constexpr Command kCommands[] = {
    {"data", "make, import, shuffle, inspect and verify data sets", run_data, help_data, true},
    {"train", "train one dictionary on the mesh; checkpoints, resumes, logs", run_train,
     help_train},
    {"eval", "metrics of a dictionary on held-out shards", run_eval, help_eval},
    {"sweep", "a grid of training runs over groups of ranks or a job array; one table",
     run_sweep_command, help_sweep},
    {"encode", "write the sparse codes of a data set", run_encode, help_encode},
    {"compare", "how far dictionaries hold the same latents", run_compare, help_compare},
    {"export", "write a dictionary in another tool's layout", run_export, help_export},
    {"import", "turn another tool's dictionary into a checkpoint", run_import, help_import},
    {"plan", "memory, bytes on the wire and disk of a configuration, without running it", run_plan,
     help_plan},
    {"bench", "rates beside measured bounds, correctness beside rates", run_bench, help_bench,
     true},
    {"lab", "the experiments of the papers behind it: reported beside ours", run_lab, help_lab,
     true},
    {"info", "build, processor, MPI, GPUs and the rank map", run_info, help_info},
};

}  // namespace

std::span<const Command> all_commands() {
  return kCommands;
}

std::string table_help(std::span<const Command> table, const std::string& prefix) {
  std::string text = fmt::format("usage: {} COMMAND [--name value ...]\n\n", prefix);
  for (const Command& command : table)
    text += fmt::format("  {:<10} {}\n", command.name, command.summary);
  return text +
         fmt::format(
             "\n{} COMMAND --help lists what a command takes; --quiet leaves progress lines out.",
             prefix);
}

int dispatch(std::span<const Command> table, const std::string& prefix, Launch& launch,
             const Args& args) {
  if (args.empty())
    fail_agreed(ExitCode::usage, fmt::format("{} needs a command", in_quotes(prefix)),
                prefix + " --help");
  const std::string& name = args.front();
  if (name == "--help" || name == "-h") {
    say(table_help(table, prefix));
    return 0;
  }
  std::vector<std::string> names = {"--help"};
  for (const Command& command : table) {
    names.emplace_back(command.name);
    if (command.name != name) continue;
    const Args rest(args.begin() + 1, args.end());
    const bool for_member = command.is_group && !rest.empty() && !rest.front().starts_with("-");
    if (wants_help(rest) && !for_member) {
      say(command.help());
      return 0;
    }
    return command.run(launch, rest);
  }
  const std::string near = nearest_name(name, names);
  fail_agreed(ExitCode::usage, fmt::format("unknown command {}", start_in_quotes(name)),
              near.empty() ? prefix + " --help" : fmt::format("did you mean '{}'?", near));
}

}  // namespace megadict
