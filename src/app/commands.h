// The commands of the binary: a table that main looks the first argument up in.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/launch.h"

namespace megadict {

using Args = std::vector<std::string>;

struct Command {
  std::string_view name, summary;
  int (*run)(Launch& launch, const Args& args);  // args after the name; returns the exit code
  std::string (*help)();
  bool is_group = false;  // run() dispatches to its own table, whose commands have their own help
};

std::span<const Command> all_commands();

// Runs args[0] of `table` with the rest, or prints help: of the command for `NAME --help`, of the
// table for `--help` and for nothing at all (then exit 2). `prefix` is what the user typed before:
// "megadict", "megadict data". Unknown names are refused (exit 2, agreed) with the nearest one.
int dispatch(std::span<const Command> table, const std::string& prefix, Launch& launch,
             const Args& args);

// Usage and one line per command.
std::string table_help(std::span<const Command> table, const std::string& prefix);

// One file each: command_<name>.cpp.
int run_data(Launch& launch, const Args& args);
std::string help_data();
int run_train(Launch& launch, const Args& args);
std::string help_train();
int run_eval(Launch& launch, const Args& args);
std::string help_eval();
int run_sweep_command(Launch& launch, const Args& args);
std::string help_sweep();
int run_encode(Launch& launch, const Args& args);
std::string help_encode();
int run_compare(Launch& launch, const Args& args);
std::string help_compare();
int run_export(Launch& launch, const Args& args);
std::string help_export();
int run_import(Launch& launch, const Args& args);
std::string help_import();
int run_info(Launch& launch, const Args& args);
std::string help_info();
int run_plan(Launch& launch, const Args& args);
std::string help_plan();
int run_lab(Launch& launch, const Args& args);
std::string help_lab();
int run_bench(Launch& launch, const Args& args);
std::string help_bench();

}  // namespace megadict
