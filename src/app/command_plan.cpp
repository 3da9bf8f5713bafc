// megadict plan: what a configuration costs on a mesh, by formula.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/fields.h"
#include "app/plan.h"
#include "app/plan_time.h"
#include "app/settings.h"
#include "app/together.h"
#include "base/error.h"
#include "base/log.h"
#include "base/range.h"
#include "data/shard_index.h"
#include "io/file.h"
#include "io/json_file.h"

namespace megadict {

namespace {

using nlohmann::ordered_json;

struct PlanOptions {
  int64_t width = 0;
  int64_t rows = 0;
  int ranks = 0;
  std::string dtype, machine, json;
  int ranks_per_node = 0;
  double signal_s = 300;  // of launch/train.sbatch
};

OptionSet options(Config& config, PlanOptions& own) {
  OptionSet set{
      .command = "plan",
      .summary = "Memory, bytes on the wire and disk of a configuration, without running it.",
      .fields = fields_of(config),
      .config_file = true};
  set.fields.insert(
      set.fields.end(),
      {{"d", &own.width, "", "width of the rows; default that of data.path", between(1, 1e6)},
       {"rows", &own.rows, "rows", "of the data set; 0 = those of data.path", between(0, 1e15)},
       {"ranks", &own.ranks, "ranks", "of the mesh; 0 = mesh.data x mesh.feature, else those here",
        between(0, 1048576)},
       {"dtype", &own.dtype, "", "of the shards; default that of data.path, else float32",
        one_of({"float32", "float16", "bfloat16"})},
       {"machine", &own.machine, "", "file of `megadict bench machine`: also says times"},
       {"ranks_per_node", &own.ranks_per_node, "ranks",
        "that share a machine; 0 = as many as it has threads", between(0, 1048576)},
       {"signal_s", &own.signal_s, "s", "that the job's USR1 comes before its end",
        between(0, 1e6)},
       {"json", &own.json, "", "also write the numbers to this file"}});
  return set;
}

// What nobody gave is read from the shards, if there are any.
void look_at_data(const std::string& path, PlanOptions& own) {
  if (own.width == 0 && path.empty())
    fail_agreed(ExitCode::usage,
                "neither --d nor --data.path was given, which say how wide rows are",
                "megadict plan --help");
  if (!path.empty()) {
    const ShardIndex index = ShardIndex::open(path);
    if (own.width != 0 && own.width != index.width())
      fail_agreed(ExitCode::usage,
                  fmt::format("--d {}, but the rows of {} are {} wide", own.width, in_quotes(path),
                              index.width()),
                  "leave one of them out");
    own.width = index.width();
    if (own.rows == 0) own.rows = index.rows();
    if (own.dtype.empty()) own.dtype = name_of(index.facts().dtype);
  }
  if (own.dtype.empty()) own.dtype = "float32";
}

int planned_ranks(const PlanOptions& own, const MeshConfig& mesh, int here) {
  if (own.ranks > 0) return own.ranks;
  const int64_t asked = int64_t{mesh.data} * mesh.feature;
  return asked > 0 ? static_cast<int>(asked) : here;
}

void say_model(const Settings& settings, const PlanInput& in, const DataFacts& facts) {
  const DiskPlan on_disk = disk(in);
  say(fmt::format("dictionary   {} latents of width {}: {} parameters, {} in fp32", in.latents,
                  in.width, parameters(in), bytes_text(4 * parameters(in))));
  say(fmt::format("batch        {} rows in micro-batches of {}", in.batch, in.micro));
  say(fmt::format("steps        {}", facts.steps > 0 ? fmt::format("{} ({} rows)", facts.steps,
                                                                   settings.config.data.tokens)
                                                     : "not known: give --data.tokens or --rows"));
  const double lr = settings.config.optim.lr;
  say(fmt::format("optim.lr     {} ({})", lr > 0 ? fmt::format("{:.4g}", lr) : "auto",
                  source_of(settings, "optim.lr")));
  say(fmt::format("checkpoint   {}; at most {} on disk with {} kept",
                  bytes_text(on_disk.checkpoint), bytes_text(on_disk.peak), in.keep));
}

void say_mesh(const PlanInput& in, const MeshConfig& mesh) {
  const MemoryPlan held = memory(in, mesh.data, mesh.feature);
  say(fmt::format("\nmesh {}x{} (data x feature), largest rank", mesh.data, mesh.feature));
  const auto line = [](const char* what, int64_t bytes, const char* meaning) {
    say(fmt::format("  {:<28} {:>18} B {:>10}  {}", what, bytes, bytes_text(bytes), meaning));
  };
  line("weights", held.weights, "fp32, its latents");
  line("moments", held.moments, "of the optimiser, the rows it updates");
  line("gradients", held.gradients, "fp32, its latents");
  if (in.average) line("average", held.average, "the rows it updates");
  line("counters", held.counters, "when a latent last fired");
  if (held.screen > 0) {
    const std::string what =
        fmt::format("encoder rows in {}", screen_product(in.screen_kind).element);
    line("screen", held.screen, what.c_str());
  }
  line("buffers", held.buffers, "micro-batches in flight and read ahead");
  line("window", held.window, "rows of the shuffling window and of the next one");
  if (held.resampling > 0) line("resampling", held.resampling, "losses of the rows it draws from");
  line("program", held.program, "libraries, as measured");
  line("peak memory", held.peak(), "");
  if (in.k_aux > 0)
    line("AuxK besides", held.bytes_per_dead_latent, "for every dead latent of a rank");
  if (mesh.data * mesh.feature == 1) return;
  say("received from other ranks in one step");
  const auto moved = transfers(in, mesh.data, mesh.feature);
  for (const Transfer& transfer : moved)
    if (transfer.bytes > 0)
      line(transfer.name, transfer.bytes,
           fmt::format("step {}, {} axis", transfer.step, transfer.axis).c_str());
  line("total", total_bytes(moved), in.k_aux > 0 ? "while there are dead latents" : "");
  if (in.resample_rows > 0)
    line("resampling besides", total_bytes(resample_transfers(in, mesh.data, mesh.feature)),
         "each time dead latents start anew");
}

void say_time(const PlanInput& in, const MeshConfig& mesh, int on_a_node, const Machine& machine) {
  const TimePlan time = step_time(in, mesh.data, mesh.feature, on_a_node, machine);
  say(fmt::format("seconds of a step on {}{}, {} rank(s) a node, no dead latents", machine.name,
                  machine.measured ? "" : " (a projection)", on_a_node));
  const auto line = [&](const char* what, double seconds) {
    say(fmt::format("  {:<28} {:>10.4f} s {:>5.1f} %", what, seconds, 100 * seconds / time.step()));
  };
  line("encode", time.encode);
  line("decode", time.decode);
  line("update", time.update);
  line("exchange", time.exchange);
  line("step", time.step());
  say(fmt::format("  {:<28} {:>10.0f} rows/s", "", static_cast<double>(in.batch) / time.step()));
}

// From the signal to a checkpoint on disk: the step under way ends, then every node writes its
// parts. The margin is what SLURM's --signal=USR1@SECONDS says.
void say_save(const PlanInput& in, const MeshConfig& mesh, int on_a_node, double signal_s,
              const Machine& machine) {
  if (machine.saved == 0) return;
  const int nodes = static_cast<int>(ceil_div(int64_t{mesh.data} * mesh.feature, on_a_node));
  const double step = step_time(in, mesh.data, mesh.feature, on_a_node, machine).step(),
               seconds = step + save_time(in, nodes, machine);
  say(fmt::format("  {:<28} {:>10.1f} s  after the signal: a step, {} at {}/s on {} node(s)",
                  "saved", seconds, bytes_text(disk(in).checkpoint),
                  bytes_text(static_cast<int64_t>(machine.saved)), nodes));
  if (seconds > signal_s / 2)
    note(
        fmt::format("note: saving takes {:.0f} s and the job's signal leaves {:.0f} s; ask for "
                    "twice what it takes, --signal=USR1@{:.0f}",
                    seconds, signal_s, std::ceil(2 * seconds)));
}

// The fastest mesh of 1, 2, 4, ... ranks whose memory is that of a node's share.
void say_scaling(const PlanInput& in, const Machine& machine, int on_a_node) {
  say("\nfastest mesh by ranks");
  say(fmt::format("  {:>6} {:>11} {:>12} {:>14} {:>11} {:>10}", "ranks", "data x feat", "step s",
                  "rows/s", "efficiency", "memory"));
  double alone = 0;
  for (int ranks = 1; ranks <= 4096; ranks *= 2) {
    const int here = std::min(ranks, on_a_node);
    MeshConfig best;
    double least = 0;
    for (const MeshConfig& mesh : meshes_of(ranks, in.latents)) {
      if (mesh.data > in.batch) continue;
      const double seconds =
          step_time(on_mesh(in, mesh), mesh.data, mesh.feature, here, machine).step();
      if (least > 0 && seconds >= least) continue;
      least = seconds;
      best = mesh;
    }
    if (least == 0) return;
    if (ranks == 1) alone = least;
    // Against one rank that has a node's threads, or one device.
    const double nodes =
        machine.devices > 0 ? ranks : std::max(1.0, static_cast<double>(ranks) / on_a_node);
    say(fmt::format("  {:>6} {:>11} {:>12.4f} {:>14.0f} {:>10.0f} % {:>10}", ranks,
                    fmt::format("{}x{}", best.data, best.feature), least,
                    static_cast<double>(in.batch) / least, 100 * alone / (nodes * least),
                    bytes_text(memory(on_mesh(in, best), best.data, best.feature).peak())));
  }
}

ordered_json memory_json(const MemoryPlan& held) {
  return {{"weights", held.weights},
          {"moments", held.moments},
          {"gradients", held.gradients},
          {"average", held.average},
          {"counters", held.counters},
          {"screen", held.screen},
          {"buffers", held.buffers},
          {"window", held.window},
          {"program", held.program},
          {"peak", held.peak()},
          {"per_dead_latent", held.bytes_per_dead_latent}};
}

// Sizes, and bytes as the lines above say them; with a machine file also seconds.
ordered_json plan_json(const PlanInput& in, const MeshConfig& mesh, const DataFacts& facts) {
  const auto moved = transfers(in, mesh.data, mesh.feature);
  ordered_json out = {{"ranks", facts.ranks},
                      {"mesh", {{"data", mesh.data}, {"feature", mesh.feature}}},
                      {"n_latents", in.latents},
                      {"width", in.width},
                      {"batch_size", in.batch},
                      {"steps", facts.steps},
                      {"parameters", parameters(in)},
                      {"checkpoint_bytes", disk(in).checkpoint},
                      {"disk_bytes", disk(in).peak},
                      {"memory_bytes", memory_json(memory(in, mesh.data, mesh.feature))},
                      {"received_bytes", total_bytes(moved)},
                      {"transfers", ordered_json::array()}};
  for (const Transfer& transfer : moved)
    if (transfer.bytes > 0)
      out["transfers"].push_back({{"step", transfer.step},
                                  {"name", transfer.name},
                                  {"axis", transfer.axis},
                                  {"bytes", transfer.bytes},
                                  {"estimate", transfer.estimate}});
  return out;
}

ordered_json time_json(const PlanInput& in, const MeshConfig& mesh, int on_a_node,
                       const Machine& machine) {
  const TimePlan time = step_time(in, mesh.data, mesh.feature, on_a_node, machine);
  return {{"machine", machine.name},     {"measured", machine.measured},
          {"ranks_per_node", on_a_node}, {"encode", time.encode},
          {"decode", time.decode},       {"update", time.update},
          {"exchange", time.exchange},   {"step", time.step()}};
}

void say_all_meshes(const PlanInput& in, int ranks, const MeshConfig& chosen) {
  const auto meshes = meshes_of(ranks, in.latents);
  int64_t least = -1;
  for (const MeshConfig& mesh : meshes) {
    const int64_t bytes = total_bytes(transfers(on_mesh(in, mesh), mesh.data, mesh.feature));
    if (least < 0 || bytes < least) least = bytes;
  }
  say(fmt::format("\nmeshes of {} rank(s): memory of a rank, bytes it receives in one step",
                  ranks));
  say(fmt::format("  {:>11} {:>10} {:>10} {:>10} {:>10} {:>10}", "data x feat", "memory", "feature",
                  "data", "world", "total"));
  for (const MeshConfig& mesh : meshes) {
    const PlanInput its = on_mesh(in, mesh);
    const auto moved = transfers(its, mesh.data, mesh.feature);
    const int64_t total = total_bytes(moved);
    const bool is_chosen = mesh.data == chosen.data;
    say(fmt::format("  {:>11} {:>10} {:>10} {:>10} {:>10} {:>10}{}{}",
                    fmt::format("{}x{}", mesh.data, mesh.feature),
                    bytes_text(memory(its, mesh.data, mesh.feature).peak()),
                    bytes_text(total_bytes(moved, "feature")),
                    bytes_text(total_bytes(moved, "data")), bytes_text(total_bytes(moved, "world")),
                    bytes_text(total), is_chosen ? "  chosen" : "",
                    total == least ? "  fewest bytes" : ""));
  }
}

}  // namespace

std::string help_plan() {
  Config config;
  PlanOptions own;
  return help_text(options(config, own));
}

int run_plan(Launch& launch, const Args& args) {
  Settings settings;
  PlanOptions own;
  settings.sources = read_options(options(settings.config, own), args);
  check_config(settings.config);
  refuse_output_files(launch.world(), {own.json});
  const DataConfig& data = settings.config.data;
  Machine machine;
  if (!own.machine.empty())
    rank_zero_first(launch.world(), [&] { machine = read_machine(own.machine); });
  rank_zero_first(launch.world(), [&] { look_at_data(data.path, own); });
  DataFacts facts{.width = own.width, .rows = own.rows};
  facts.sample_bytes = own.dtype == "float32" ? 4 : 2;
  facts.ranks = planned_ranks(own, settings.config.mesh, launch.facts().ranks);
  facts.tokens = own.rows / data.batch_size * data.batch_size;
  facts.steps = (data.tokens > 0 ? data.tokens : own.rows) / data.batch_size;
  check_against_data(settings, facts);
  for (const std::string& remark : remarks_on(settings, facts)) note("note: " + remark);
  PlanInput in = plan_input(settings.config, own.width, facts.sample_bytes, own.rows);
  in.exchange_by_rule = source_of(settings, "mesh.exchange") == "resolved";
  say_model(settings, in, facts);
  say_mesh(in, settings.config.mesh);
  const auto& mesh = settings.config.mesh;
  const int on_a_node = own.ranks_per_node > 0 ? own.ranks_per_node : machine.ranks_per_node();
  ordered_json json = plan_json(in, mesh, facts);
  if (!own.machine.empty()) {
    const int here = std::min(facts.ranks, on_a_node);
    json["step_s"] = time_json(in, mesh, here, machine);
    say_time(in, mesh, here, machine);
    say_save(in, mesh, here, own.signal_s, machine);
  }
  if (!own.machine.empty() && machine.devices == 0 && machine.latency_s == 0)
    note(
        "note: the machine file was measured by one rank: collectives cost what memory costs; "
        "mpirun megadict bench machine measures them");
  if (facts.ranks > 1) say_all_meshes(in, facts.ranks, mesh);
  if (!own.machine.empty()) say_scaling(in, machine, on_a_node);
  if (!own.json.empty() && launch.facts().rank == 0) write_json(own.json, json);
  return 0;
}

}  // namespace megadict
