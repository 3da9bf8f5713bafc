// megadict lab list | run: the seeds' experiments by name (lab/experiment.h).
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "app/build_facts.h"
#include "app/commands.h"
#include "app/options.h"
#include "app/together.h"
#include "base/error.h"
#include "base/log.h"
#include "base/stop_request.h"
#include "comm/agree.h"
#include "io/output_path.h"
#include "lab/row_training.h"
#include "lab/run.h"

namespace megadict {

namespace {

struct LabOptions {
  std::string name, out = "lab";
  LabScale scale;
};

// "depth, scaling": those that can train on the user's rows.
std::string names_on_rows() {
  std::string names;
  for (const LabExperiment& experiment : all_experiments())
    if (experiment.rows != LabRows::never)
      names += fmt::format("{}{}", names.empty() ? "" : ", ", experiment.name);
  return names;
}

OptionSet run_options(LabOptions& own) {
  LabScale& scale = own.scale;
  return {
      .command = "lab run",
      .summary =
          "Runs an experiment (or all) and sets what it gives beside what was reported; "
          "goes on where it was interrupted. One thread a rank.",
      .fields = {{"quick", &scale.quick, "", "fewer cells and steps: minutes"},
                 {"full", &scale.full, "", "all that the definition has: some take many hours"},
                 {"seeds", &scale.seeds, "", "data seeds a cell; 0 = the experiment's",
                  between(0, 1000)},
                 {"out", &own.out, "", "folder: OUT/NAME/result.json, table.txt, cells/"},
                 {"latents", &scale.latents, "",
                  "of another problem, N; 0 = the experiment's, here and below", between(0, 4096)},
                 {"width", &scale.width, "", "M", between(0, 4096)},
                 {"k", &scale.k, "", "active latents of a sample, K", between(0, 4096)},
                 {"samples", &scale.samples, "", "half train; a multiple of 32", between(0, 1e7)},
                 {"steps", &scale.steps, "", "of training", between(0, 1e9)},
                 {"rate", &scale.rate, "", "learning rate", between(0, 1e30)},
                 {"lambda", &scale.lambda, "", "of the penalty", between(0, 1e30)},
                 {"data.path", &scale.data_path, "",
                  "shards of activations with eval/: " + names_on_rows()},
                 {"mnist", &scale.mnist, "",
                  "folder of MNIST's four .gz files; empty: $MEGADICT_MNIST, ./mnist or "
                  "../shared/data/mnist"},
                 {"zipf", &scale.zipf, "", "latents drawn with weights i^-zipf (A3)",
                  between(0, 10)}},
      .positional = {{"NAME", &own.name, "", "an experiment of `megadict lab list`, or all"}},
      .required = {"NAME"}};
}

// A number that is given and 0 is a mistake, not the default.
void refuse_zeros(const OptionSet& set, const Sources& sources) {
  for (const char* name : {"latents", "width", "k", "samples", "steps"})
    for (const Field& field : set.fields)
      if (field.name == name && sources.count(name) != 0 && value_text(field) == "0")
        fail_agreed(ExitCode::usage, fmt::format("{} = 0: at least 1", name));
}

void check_scale(const LabScale& scale) {
  if (scale.quick && scale.full)
    fail_agreed(ExitCode::usage, "--quick and --full exclude each other");
  constexpr int64_t kGrain = 32;
  if (scale.samples % kGrain != 0)
    fail_agreed(ExitCode::usage,
                fmt::format("samples = {}: a multiple of {}", scale.samples, kGrain),
                fmt::format("--samples {}", (scale.samples / kGrain + 1) * kGrain));
}

// An experiment and what of the user's data it is run on.
struct Chosen {
  LabExperiment experiment;
  LabScale scale;
};

// Refuses what one experiment cannot be run with.
void check_inputs(Communicator& world, const Chosen& chosen, bool named) {
  const auto& [experiment, scale] = chosen;
  if (named && experiment.rows == LabRows::never && !scale.data_path.empty())
    fail_agreed(ExitCode::usage, fmt::format("{} has a problem of its own: --data.path is for {}",
                                             experiment.name, names_on_rows()));
  if (experiment.rows == LabRows::always || !scale.data_path.empty())
    rank_zero_first(world, [&] { check_rows(scale.data_path); });
  agree(world, [&] {
    if (experiment.check != nullptr) experiment.check(scale);
  });
}

// The experiments that can be run. Of `all` those are left out, and said to be, that are not of the
// problem that is asked for, or whose data nobody named and that are not found.
std::vector<Chosen> choose(Communicator& world, const std::vector<LabExperiment>& experiments,
                           const LabScale& scale) {
  const bool named = experiments.size() == 1;
  std::vector<Chosen> chosen;
  for (const LabExperiment& experiment : experiments) {
    Chosen one{experiment, scale};
    if (!named && experiment.rows != LabRows::always) one.scale.data_path.clear();
    try {
      check_inputs(world, one, named);
    } catch (const Error& error) {
      const bool given =
          experiment.rows == LabRows::always ? !scale.data_path.empty() : !scale.mnist.empty();
      // Numbers of another problem than this one's: the others may still have it.
      const bool fits = error.code() != ExitCode::usage;
      if (named || (given && fits)) throw;
      say(fmt::format("{}: not run: {} ({})", experiment.name, error.what(), error.hint()));
      continue;
    }
    chosen.push_back(std::move(one));
  }
  return chosen;
}

std::vector<LabExperiment> wanted(const std::string& name) {
  std::vector<LabExperiment> found;
  std::vector<std::string> names = {"all"};
  for (const LabExperiment& experiment : all_experiments()) {
    if (name == "all" || name == experiment.name) found.push_back(experiment);
    names.emplace_back(experiment.name);
  }
  if (!found.empty()) return found;
  const std::string near = nearest_name(name, names);
  fail_agreed(ExitCode::usage, fmt::format("unknown experiment {}", in_quotes(name)),
              near.empty() ? "megadict lab list" : fmt::format("did you mean '{}'?", near));
}

double cost_of(const LabExperiment& experiment, const LabScale& scale) {
  double cost_s = 0;
  for (const LabCell& cell : experiment.cells(scale)) cost_s += cell.cost_s;
  return cost_s;
}

// "about 20 min on one core; --quick about 3 min on one core", and --full where that is more.
std::string costs_text(const LabExperiment& experiment) {
  const double normal = cost_of(experiment, {}), full = cost_of(experiment, {.full = true});
  std::string text = fmt::format("{}; --quick {}", cost_text(normal),
                                 cost_text(cost_of(experiment, {.quick = true})));
  if (full > normal) text += "; --full " + cost_text(full);
  return text;
}

int run_list(Launch&, const Args& args);
int run_run(Launch& launch, const Args& args);

std::string help_list() {
  return help_text(
      {.command = "lab list", .summary = "The experiments, and what they cost.", .fields = {}});
}

std::string help_run() {
  LabOptions own;
  return help_text(run_options(own));
}

constexpr Command kLabCommands[] = {
    {"list", "the experiments, and what they cost", run_list, help_list},
    {"run", "run one of them, or all", run_run, help_run},
};

int run_list(Launch&, const Args& args) {
  read_options({.command = "lab list", .summary = "", .fields = {}}, args);
  for (const LabExperiment& experiment : all_experiments())
    say(fmt::format("{:<17} {}\n{:<17} {}\n{:<17} items {}", experiment.name, experiment.summary,
                    "", costs_text(experiment), "", experiment.items));
  return 0;
}

int run_run(Launch& launch, const Args& args) {
  Args plain;
  for (size_t i = 0; i < args.size(); ++i) {
    plain.push_back(args[i]);
    const bool has_value = i + 1 < args.size() && (args[i + 1] == "true" || args[i + 1] == "false");
    if ((args[i] == "--quick" || args[i] == "--full") && !has_value) plain.emplace_back("true");
  }
  LabOptions own;
  const OptionSet set = run_options(own);
  refuse_zeros(set, read_options(set, plain));
  check_scale(own.scale);
  const std::vector<LabExperiment> experiments = wanted(own.name);
  const std::vector<Chosen> chosen = choose(launch.world(), experiments, own.scale);
  refuse_output_folder(own.out);
  at::set_num_threads(1);
  // Moments of dead latents decay to numbers so small that arithmetic on them takes 10 times as
  // long.
  at::globalContext().setFlushDenormal(true);
  install_stop_handlers();
  const nlohmann::ordered_json machine = {
      {"processor", processor()}, {"ranks", launch.facts().ranks}, {"version", version()}};
  if (chosen.size() > 1) {
    double cost_s = 0;
    for (const auto& [experiment, scale] : chosen) cost_s += cost_of(experiment, scale);
    say(fmt::format("all: {} experiments, {}", chosen.size(), cost_text(cost_s)));
  }
  VerdictCount all;
  for (const auto& [experiment, scale] : chosen) {
    VerdictCount count;
    const ExitCode code =
        run_experiment(launch.world(), experiment,
                       {.out = own.out, .scale = scale, .quiet = is_quiet()}, machine, count);
    if (code != ExitCode::done) return static_cast<int>(code);
    all.add(count);
  }
  if (experiments.size() > 1)
    say(fmt::format("all: {} of {} experiments; {}", chosen.size(), experiments.size(),
                    all.text()));
  return 0;
}

}  // namespace

std::string help_lab() {
  return table_help(kLabCommands, "megadict lab");
}

int run_lab(Launch& launch, const Args& args) {
  return dispatch(kLabCommands, "megadict lab", launch, args);
}

}  // namespace megadict
