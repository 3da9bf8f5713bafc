// megadict bench: rates beside measured bounds, correctness beside rates.
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/bench.h"
#include "app/build_facts.h"
#include "app/commands.h"
#include "app/options.h"
#include "base/error.h"
#include "base/log.h"
#include "io/json_file.h"

namespace megadict {

namespace {

struct BenchOptions {
  KernelBench kernels;
  int threads = 0;
  std::string json;
};

std::vector<Field> common_fields(BenchOptions& own) {
  return {
      {"repeats", &own.kernels.repeats, "", "timed calls; the median counts", between(1, 1e4)},
      {"threads", &own.threads, "threads", "0 = cpus / ranks that share them", between(0, 4096)},
      {"json", &own.json, "", "file to write"}};
}

OptionSet kernel_options(BenchOptions& own) {
  OptionSet set{.command = "bench kernels",
                .summary = "The local operations of a step, alone, beside what the machine can do.",
                .fields = common_fields(own)};
  set.fields.insert(
      set.fields.begin(),
      {{"d", &own.kernels.width, "", "width of the rows", between(1, 65536)},
       {"n_latents", &own.kernels.latents, "latents", "size of the dictionary", between(1, 1e8)},
       {"k", &own.kernels.k, "latents", "active per row", between(1, 65536)},
       {"rows", &own.kernels.rows, "rows", "of the batch", between(1, 1e7)}});
  return set;
}

void finish(const BenchReport& report, const BenchOptions& own) {
  for (const std::string& line : table_of(report)) say(line);
  if (own.json.empty()) return;
  nlohmann::ordered_json json = json_of(report);
  json["megadict"] = version();
  json["processor"] = processor();
  json["features"] = cpu_features();
  json["threads"] = at::get_num_threads();
  write_json(own.json, json);
}

int run_kernels(Launch& launch, const Args& args) {
  BenchOptions own;
  read_options(kernel_options(own), args);
  if (launch.facts().ranks > 1)
    fail_agreed(ExitCode::usage, "megadict bench kernels runs as one process");
  if (own.kernels.k > own.kernels.latents)
    fail_agreed(ExitCode::usage, fmt::format("k = {} is larger than n_latents = {}", own.kernels.k,
                                             own.kernels.latents));
  const c10::NoGradGuard no_grad;
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  finish(bench_kernels(own.kernels), own);
  return 0;
}

std::string help_kernels() {
  BenchOptions own;
  return help_text(kernel_options(own));
}

constexpr Command kBenches[] = {
    {"kernels", "the local operations of a step, alone", run_kernels, help_kernels},
};

}  // namespace

std::string help_bench() {
  return table_help(kBenches, "megadict bench");
}

int run_bench(Launch& launch, const Args& args) {
  return dispatch(kBenches, "megadict bench", launch, args);
}

}  // namespace megadict
