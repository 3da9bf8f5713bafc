// megadict data: data sets made, taken over, shuffled, looked at and checked. One process each.
#include <fmt/format.h>

#include "app/commands.h"
#include "app/options.h"
#include "base/error.h"
#include "base/log.h"
#include "data/import.h"
#include "data/inspect.h"
#include "data/shard_index.h"
#include "data/shuffle.h"
#include "data/synth.h"

namespace megadict {

namespace {

constexpr double kMostRows = 1e15;

void one_process(const Launch& launch, const char* command) {
  if (launch.facts().ranks > 1)
    fail_agreed(ExitCode::usage,
                fmt::format("megadict data {} runs as one process, not as {} ranks", command,
                            launch.facts().ranks));
}

Field eval_fraction_field(double* target) {
  return {"eval_fraction", target, "", "share of the rows that goes to OUT/eval",
          from_to_below(0, 1)};
}

OptionSet synth_options(SynthDataset& own) {
  SynthOptions& o = own.options;
  return {.command = "data synth",
          .summary = "Writes sparse data with a known dictionary (OUT/truth.safetensors).",
          .fields = {{"out", &own.out, "", "folder to make"},
                     {"rows", &own.rows, "rows", "in all", between(1, kMostRows)},
                     eval_fraction_field(&own.eval_fraction),
                     {"dtype", &own.dtype, "", "of the shards",
                      one_of({"float32", "float16", "bfloat16"})},
                     {"n_latents", &o.n_latents, "latents", "of the dictionary", between(1, 1e9)},
                     {"d", &o.width, "", "width of the rows", between(1, 131072)},
                     {"k", &o.k, "latents", "active in a row", between(1, 1e6)},
                     {"sign", &o.sign, "", "values |N(0,1)| or N(0,1)", one_of({"half", "signed"})},
                     {"noise_std", &o.noise_std, "", "normal noise on every entry", at_least(0)},
                     {"zipf", &o.zipf, "", "exponent of the latents' frequencies; 0 = uniform",
                      between(0, 100)},
                     {"k_dist", &o.k_dist, "", "k in every row, or uniform on 1 to 2k-1",
                      one_of({"fixed", "uniform"})},
                     {"correlation", &o.correlation, "", "of latents in groups of four",
                      from_to_below(0, 1)},
                     {"seed", &o.seed, "", "of every random number", at_least(0)}},
          .required = {"out", "rows"}};
}

int run_synth(Launch& launch, const Args& args) {
  SynthDataset own;
  read_options(synth_options(own), args);
  one_process(launch, "synth");
  const auto [training, held_out] = write_synth(own);
  say(fmt::format("wrote {} rows and {} held-out rows of width {} to {}", training, held_out,
                  own.options.width, own.out));
  return 0;
}

OptionSet import_options(ImportOptions& own) {
  return {.command = "data import",
          .summary = "Turns .npy, safetensors and HDF5 files of activations into shards.",
          .fields = {{"from", &own.from, "", "a file, a folder of files of one kind or a glob"},
                     {"out", &own.out, "", "folder to make"},
                     eval_fraction_field(&own.eval_fraction),
                     {"dataset", &own.source.dataset, "",
                      "HDF5: this dataset; default 'activations', else the only one"},
                     {"tensor", &own.source.tensor, "", "safetensors: this one; default the only"},
                     {"dtype", &own.source.dtype, "", "16-bit unsigned integers are bfloat16",
                      one_of({"bfloat16"})},
                     {"store", &own.store, "", "element type of the shards; default the files' own",
                      one_of({"float32", "float16", "bfloat16"})},
                     {"model", &own.model, "", "the rows' model, kept in the shards"},
                     {"hook", &own.hook, "", "their place in it"},
                     {"layer", &own.layer, "", "its number; -1 = unknown", between(-1, 1e6)},
                     {"tokenizer", &own.tokenizer, "", "the tokens' tokenizer"},
                     {"seed", &own.seed, "", "of the choice of held-out documents", at_least(0)}},
          .required = {"from", "out"}};
}

int run_import(Launch& launch, const Args& args) {
  ImportOptions own;
  read_options(import_options(own), args);
  one_process(launch, "import");
  for (const std::string& line : describe(import_activations(own))) say(line);
  return 0;
}

OptionSet shuffle_options(ShuffleOptions& own) {
  return {.command = "data shuffle",
          .summary = "Writes the rows of a data set in one global random order.",
          .fields = {{"from", &own.from, "", "folder or glob of shards"},
                     {"out", &own.out, "", "folder to make"},
                     {"seed", &own.seed, "", "of the order", at_least(0)},
                     {"memory_mib", &own.memory_mib, "MiB",
                      "about so much memory; the disk holds the rows twice meanwhile",
                      between(1, 1e9)}},
          .required = {"from", "out"}};
}

int run_shuffle(Launch& launch, const Args& args) {
  ShuffleOptions own;
  read_options(shuffle_options(own), args);
  one_process(launch, "shuffle");
  const int64_t rows = shuffle_data_set(own);
  say(fmt::format("wrote {} rows to {}", rows, own.out));
  return 0;
}

OptionSet path_options(const char* command, const char* summary, std::string& path) {
  return {.command = command,
          .summary = summary,
          .fields = {},
          .positional = {{"PATH", &path, "", "folder or glob of shards"}},
          .required = {"PATH"}};
}

OptionSet info_options(std::string& path) {
  return path_options("data info", "Prints the shards of a data set, their sizes and norms.", path);
}

int run_data_info(Launch& launch, const Args& args) {
  std::string path;
  read_options(info_options(path), args);
  one_process(launch, "info");
  for (const std::string& line : data_info(path)) say(line);
  ShardIndex::open(path);  // what was listed as unusable ends with its code
  return 0;
}

OptionSet verify_options(std::string& path) {
  return path_options("data verify",
                      "Reads everything, eval/ too: checksums, finite values, norms.", path);
}

int run_verify(Launch& launch, const Args& args) {
  std::string path;
  read_options(verify_options(path), args);
  one_process(launch, "verify");
  const VerifyReport report = verify_data_set(path);
  for (const std::string& problem : report.problems) say(problem);
  say(fmt::format("{} shards, {} chunks, {} rows, {} bytes read", report.shards, report.chunks,
                  report.rows, report.bytes));
  if (!report.problems.empty())
    fail(ExitCode::bad_data, fmt::format("{}: {} problem(s) found, listed above", in_quotes(path),
                                         report.problems.size()));
  say("no problem found");
  return 0;
}

std::string help_synth() {
  SynthDataset own;
  return help_text(synth_options(own));
}

std::string help_import() {
  ImportOptions own;
  return help_text(import_options(own));
}

std::string help_shuffle() {
  ShuffleOptions own;
  return help_text(shuffle_options(own));
}

std::string help_data_info() {
  std::string path;
  return help_text(info_options(path));
}

std::string help_verify() {
  std::string path;
  return help_text(verify_options(path));
}

constexpr Command kDataCommands[] = {
    {"synth", "make sparse data with a known dictionary", run_synth, help_synth},
    {"import", "turn activation files into shards", run_import, help_import},
    {"shuffle", "write the rows in one global random order", run_shuffle, help_shuffle},
    {"info", "print the shards, their sizes and norms", run_data_info, help_data_info},
    {"verify", "read everything and check it", run_verify, help_verify},
};

}  // namespace

int run_data(Launch& launch, const Args& args) {
  return dispatch(kDataCommands, "megadict data", launch, args);
}

std::string help_data() {
  return table_help(kDataCommands, "megadict data");
}

}  // namespace megadict
