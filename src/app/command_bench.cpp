// megadict bench: rates beside measured bounds, correctness beside rates.
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/bench.h"
#include "app/bench_comm.h"
#include "app/build_facts.h"
#include "app/commands.h"
#include "app/fields.h"
#include "app/machine.h"
#include "app/options.h"
#include "app/together.h"
#include "base/error.h"
#include "base/log.h"
#include "io/file.h"
#include "io/json_file.h"
#include "kernels/isa.h"
#include "kernels/kernel_set.h"
#include "kernels/optimiser.h"
#include "kernels/screen_tile.h"

namespace megadict {

namespace {

struct BenchOptions {
  KernelBench kernels;
  StepBench step;
  LoaderBench loader;
  LabBench lab;
  CommBench comm;
  int repeats = 5;
  int threads = 0;
  double seconds = 10;
  std::string json, isa = "auto", folder;
};

void settle_isa(const BenchOptions& own) {
  if (own.isa != "auto") use_isa(isa_named(own.isa));
}

std::vector<Field> common_fields(BenchOptions& own) {
  return {
      {"repeats", &own.repeats, "", "timed calls; the median counts", between(1, 1e4)},
      {"threads", &own.threads, "threads", "0 = cpus / ranks that share them", between(0, 4096)},
      {"isa", &own.isa, "", "instructions of the hand-written kernels; auto = the best there are",
       one_of(isa_choices())},
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

template <class Report>
void finish(const Report& report, const BenchOptions& own) {
  for (const std::string& line : table_of(report)) say(line);
  if (own.json.empty()) return;
  nlohmann::ordered_json json = json_of(report);
  json["megadict"] = version();
  json["processor"] = processor();
  json["features"] = cpu_features();
  json["kernels"] = name_of(isa_in_use());
  json["threads"] = at::get_num_threads();
  write_json(own.json, json);
}

int run_kernels(Launch& launch, const Args& args) {
  BenchOptions own;
  read_options(kernel_options(own), args);
  refuse_output_files(launch.world(), {own.json});
  if (launch.facts().ranks > 1)
    fail_agreed(ExitCode::usage, "megadict bench kernels runs as one process");
  if (own.kernels.k > own.kernels.latents)
    fail_agreed(ExitCode::usage, fmt::format("k = {} is larger than n_latents = {}", own.kernels.k,
                                             own.kernels.latents));
  const c10::NoGradGuard no_grad;
  settle_isa(own);
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  own.kernels.repeats = own.repeats;
  finish(bench_kernels(own.kernels), own);
  return 0;
}

OptionSet step_options(BenchOptions& own) {
  OptionSet set{.command = "bench step",
                .summary = "Whole optimiser steps on the mesh of all ranks, without a loader.",
                .fields = common_fields(own)};
  StepBench& step = own.step;
  std::vector<std::string> names;
  for (const Optimiser& optimiser : all_optimisers()) names.emplace_back(optimiser.name);
  set.fields.insert(
      set.fields.begin(),
      {{"d", &step.width, "", "width of the rows", between(1, 65536)},
       {"n_latents", &step.latents, "latents", "size of the dictionary", between(1, 1e9)},
       {"k", &step.k, "latents", "active per row", between(1, 65536)},
       {"rows", &step.rows, "rows", "of the batch", between(1, 1e7)},
       {"micro", &step.micro, "rows", "of a micro-batch; 0 = all", between(0, 1e7)},
       {"optimiser", &step.optimiser, "", "", one_of(names)},
       {"encode", &step.encode, "", "", one_of({"fp32", "screen_int8", "screen_bf16"})},
       {"set", &step.set, "", "of kernels: as kernels.set", one_of({"auto", "cpu", "tensor"})},
       {"dead", &step.dead, "latents", "that AuxK works on", between(0, 1e9)},
       {"k_aux", &step.k_aux, "latents", "dead latents active per row; 0 = no AuxK",
        between(0, 65536)},
       {"mesh.data", &step.mesh.data, "ranks", "parts of the batch; 0 = auto", between(0, 1048576)},
       {"mesh.feature", &step.mesh.feature, "ranks", "parts of the dictionary; 0 = auto",
        between(0, 1048576)},
       {"mesh.exchange", &step.exchange, "", "as in train", one_of({"gradients", "tokens"})},
       {"mesh.overlap", &step.mesh.overlap, "", "as in train; by turns with steps that do not"}});
  return set;
}

int run_step(Launch& launch, const Args& args) {
  BenchOptions own;
  read_options(step_options(own), args);
  refuse_output_files(launch.world(), {own.json});
  own.step.repeats = own.repeats;
  if (own.step.k > own.step.latents || own.step.k_aux > own.step.latents)
    fail_agreed(ExitCode::usage, fmt::format("k = {} or k_aux = {} is larger than n_latents = {}",
                                             own.step.k, own.step.k_aux, own.step.latents));
  if (own.step.micro > own.step.rows || own.step.dead > own.step.latents)
    fail_agreed(ExitCode::usage,
                fmt::format("micro = {} of {} rows, or dead = {} of {} latents, is more than there "
                            "are",
                            own.step.micro, own.step.rows, own.step.dead, own.step.latents));
  const MeshConfig mesh = resolve_mesh(own.step.mesh, launch.facts().ranks);
  if (mesh.feature > own.step.latents)
    fail_agreed(ExitCode::usage, fmt::format("mesh.feature = {} is more than n_latents = {}",
                                             mesh.feature, own.step.latents));
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  if (own.step.set == "tensor") {
    if (own.step.encode != "fp32")
      fail_agreed(ExitCode::usage, "set = tensor has no screen", "--encode fp32");
    use_kernels(&kTensorKernels);
  }
  settle_isa(own);
  const ScreenProduct* product = screen_named(own.step.encode);
  if (product != nullptr && !has_fast_screen(product->kind))
    fail_agreed(ExitCode::usage,
                fmt::format("encode = {}: no instructions for it in {}", own.step.encode,
                            name_of(isa_in_use())),
                "--encode fp32");
  const BenchReport report = bench_step(launch.world(), own.step);
  if (launch.facts().rank == 0) finish(report, own);
  return 0;
}

std::string help_step() {
  BenchOptions own;
  return help_text(step_options(own));
}

std::string help_kernels() {
  BenchOptions own;
  return help_text(kernel_options(own));
}

OptionSet loader_options(BenchOptions& own) {
  LoaderBench& loader = own.loader;
  DataConfig& data = loader.data;
  return {.command = "bench loader",
          .summary = "The batch stream over whole passes, beside plain reads of the same files.",
          .fields = {{"data.path", &data.path, "", "folder or glob of activation shards"},
                     {"data.batch_size", &data.batch_size, "rows", "global batch", between(1, 1e9)},
                     {"data.micro_batch_size", &data.micro_batch_size, "rows",
                      "part of the batch handled at once; 0 = all", between(0, 1e9)},
                     {"data.shuffle_buffer", &data.shuffle_buffer, "rows",
                      "shuffling window of the whole mesh", between(1, 1e12)},
                     {"data.queue", &data.queue, "micro-batches", "read ahead", between(1, 1024)},
                     {"mesh.data", &loader.mesh.data, "ranks", "parts of the batch; 0 = auto",
                      between(0, 1048576)},
                     {"mesh.feature", &loader.mesh.feature, "ranks",
                      "parts of a data row; 0 = auto", between(0, 1048576)},
                     {"cold", &loader.cold, "",
                      "also from the disk: drops the files from the page cache"},
                     {"repeats", &loader.repeats, "", "passes of each kind; the median counts",
                      between(1, 1e4)},
                     {"json", &own.json, "", "file to write"}},
          .required = {"data.path"}};
}

int run_loader(Launch& launch, const Args& args) {
  BenchOptions own;
  own.loader.data.last_batch = "keep";
  read_options(loader_options(own), args);
  refuse_output_files(launch.world(), {own.json});
  const BenchReport report = bench_loader(launch.world(), own.loader);
  if (launch.facts().rank == 0) finish(report, own);
  return 0;
}

std::string help_loader() {
  BenchOptions own;
  return help_text(loader_options(own));
}

OptionSet lab_options(BenchOptions& own) {
  LabBench& lab = own.lab;
  return {
      .command = "bench lab",
      .summary = "Whole trainings of the laboratory's default problem (16 latents, 8 wide).",
      .fields = {
          {"sae_steps", &lab.sae_steps, "steps", "of the autoencoder", between(1, 1e7)},
          {"codes_steps", &lab.codes_steps, "steps", "of gradient sparse coding", between(1, 1e7)},
          {"repeats", &lab.repeats, "", "runs of each; the median counts", between(1, 1e4)},
          {"json", &own.json, "", "file to write"}}};
}

int run_lab_bench(Launch& launch, const Args& args) {
  BenchOptions own;
  read_options(lab_options(own), args);
  refuse_output_files(launch.world(), {own.json});
  if (launch.facts().ranks > 1)
    fail_agreed(ExitCode::usage, "megadict bench lab runs as one process");
  const c10::NoGradGuard no_grad;
  at::set_num_threads(1);
  finish(bench_lab(own.lab), own);
  return 0;
}

std::string help_lab_bench() {
  BenchOptions own;
  return help_text(lab_options(own));
}

OptionSet comm_options(BenchOptions& own) {
  CommBench& comm = own.comm;
  return {.command = "bench comm",
          .summary = "Every collective over a range of sizes, results compared on every rank.",
          .fields = {
              {"least_bytes", &comm.least_bytes, "bytes", "smallest full vector", between(4, 1e12)},
              {"most_bytes", &comm.most_bytes, "bytes", "largest", between(4, 1e12)},
              {"factor", &comm.factor, "", "from one size to the next", between(2, 1e6)},
              {"seconds", &comm.seconds, "s", "for each line, about", between(0, 3600)},
              {"repeats", &comm.repeats, "", "parts of these seconds; the median counts",
               between(1, 1e4)},
              {"device", &comm.device, "", "cuda: through NCCL", one_of({"cpu", "cuda"})},
              {"mesh.data", &comm.mesh.data, "ranks", "also over this axis; 0 = auto",
               between(0, 1048576)},
              {"mesh.feature", &comm.mesh.feature, "ranks", "and over this one; 0 = auto",
               between(0, 1048576)},
              {"json", &own.json, "", "file to write"}}};
}

int run_comm(Launch& launch, const Args& args) {
  BenchOptions own;
  read_options(comm_options(own), args);
  refuse_output_files(launch.world(), {own.json});
  const CommBench& comm = own.comm;
  if (comm.most_bytes < comm.least_bytes)
    fail_agreed(ExitCode::usage, fmt::format("most_bytes = {} is less than least_bytes = {}",
                                             comm.most_bytes, comm.least_bytes));
  const Device device = comm.device == "cuda" ? Device::cuda : Device::cpu;
  const CommReport report = bench_comm(launch.world_for(device), comm);
  if (launch.facts().rank == 0) finish(report, own);
  return 0;
}

std::string help_comm() {
  BenchOptions own;
  return help_text(comm_options(own));
}

OptionSet machine_options(BenchOptions& own) {
  return {.command = "bench machine",
          .summary = "Measures what the planner computes from: megadict plan --machine FILE.",
          .fields = {{"seconds", &own.seconds, "s", "to measure for, about", between(0.1, 3600)},
                     {"threads", &own.threads, "threads", "0 = cpus / ranks that share them",
                      between(0, 4096)},
                     {"folder", &own.folder, "",
                      "where runs will be: also measures how fast it takes checkpoints"},
                     {"json", &own.json, "", "machine file to write"}}};
}

int run_machine(Launch& launch, const Args& args) {
  BenchOptions own;
  read_options(machine_options(own), args);
  refuse_output_files(launch.world(), {own.json});
  if (launch.facts().nodes > 1)
    fail_agreed(ExitCode::usage, "megadict bench machine measures one node");
  if (!own.folder.empty() && !folder_exists(own.folder))
    fail_agreed(ExitCode::usage, fmt::format("there is no folder {}", in_quotes(own.folder)));
  const c10::NoGradGuard no_grad;
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  const Machine machine = measure_machine(launch.world(), own.seconds, own.folder);
  if (launch.facts().rank != 0) return 0;
  const nlohmann::ordered_json json = json_of(machine);
  for (const auto& [name, value] : json.items()) say(fmt::format("{:<26} {}", name, value.dump()));
  if (!own.json.empty()) write_json(own.json, json);
  return 0;
}

std::string help_machine() {
  BenchOptions own;
  return help_text(machine_options(own));
}

constexpr Command kBenches[] = {
    {"kernels", "the local operations of a step, alone", run_kernels, help_kernels},
    {"step", "whole optimiser steps on the mesh, by stage", run_step, help_step},
    {"loader", "the batch stream beside plain reads of its files", run_loader, help_loader},
    {"lab", "whole trainings of the laboratory's default problem", run_lab_bench, help_lab_bench},
    {"comm", "every collective over a range of sizes", run_comm, help_comm},
    {"machine", "rates that the planner computes from", run_machine, help_machine},
};

}  // namespace

std::string help_bench() {
  return table_help(kBenches, "megadict bench");
}

int run_bench(Launch& launch, const Args& args) {
  return dispatch(kBenches, "megadict bench", launch, args);
}

}  // namespace megadict
