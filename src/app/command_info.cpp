// megadict info: what this build is and where its ranks run.
#include <fmt/format.h>

#include <cstring>

#include "app/build_facts.h"
#include "app/commands.h"
#include "app/options.h"
#include "base/log.h"

namespace megadict {

namespace {

// One line of the rank map, of fixed size so that one all-gather moves it.
struct RankRecord {
  int32_t rank, node, local_rank, cpus, threads;
  char host[108];
};

std::vector<RankRecord> gather_ranks(Launch& launch) {
  const LaunchFacts& facts = launch.facts();
  RankRecord mine{facts.rank, facts.node, facts.local_rank, facts.cpus, resolve_threads(0, facts),
                  ""};
  std::strncpy(mine.host, facts.host.c_str(), sizeof(mine.host) - 1);
  std::vector<RankRecord> all(static_cast<size_t>(facts.ranks));
  const auto bytes = static_cast<int64_t>(sizeof(RankRecord));
  launch.world().all_gather({&mine, bytes, DType::u8, Device::cpu},
                            {all.data(), bytes * facts.ranks, DType::u8, Device::cpu}, "rank map");
  return all;
}

OptionSet options() {
  return {.command = "info",
          .summary = "Prints what this build is made of and where its ranks run.",
          .fields = {}};
}

}  // namespace

std::string help_info() {
  return help_text(options());
}

int run_info(Launch& launch, const Args& args) {
  read_options(options(), args);
  const LaunchFacts& facts = launch.facts();
  say(fmt::format("megadict   {}", program_version()));
  say(fmt::format("compiler   {}", compiler()));
  say(fmt::format("LibTorch   {}", torch_facts()));
  say(fmt::format("processor  {}", processor()));
  say(fmt::format("features   {}", fmt::join(cpu_features(), " ")));
  say(fmt::format("GPUs       {}", gpu_facts()));
  say(fmt::format("launcher   {}, {} rank(s) on {} node(s)", facts.launcher, facts.ranks,
                  facts.nodes));
  for (const std::string& setting : facts.settings) say("           " + setting);
  say(fmt::format("\n{:>6} {:>6} {:>6} {:>6} {:>8}  host", "rank", "node", "local", "cpus",
                  "threads"));
  for (const RankRecord& record : gather_ranks(launch))
    say(fmt::format("{:>6} {:>6} {:>6} {:>6} {:>8}  {}", record.rank, record.node,
                    record.local_rank, record.cpus, record.threads, record.host));
  return 0;
}

}  // namespace megadict
