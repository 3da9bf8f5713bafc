// megadict info: what this build is and where its ranks run.
#include <fmt/format.h>

#include "app/build_facts.h"
#include "app/commands.h"
#include "app/options.h"
#include "app/together.h"
#include "base/log.h"
#include "kernels/fp32_tile.h"
#include "kernels/screen_tile.h"
#include "kernels/vector_ops.h"

namespace megadict {

namespace {

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
  say(fmt::format("megadict   {}", version()));
  say(fmt::format("compiler   {}", compiler()));
  say(fmt::format("LibTorch   {}", torch_facts()));
  say(fmt::format("processor  {}", processor()));
  say(fmt::format("features   {}", fmt::join(cpu_features(), " ")));
  std::string screens;
  for (const ScreenProduct& product : all_screen_products())
    screens += fmt::format("{}{} {}", screens.empty() ? "" : ", ", product.name,
                           name_of(best_screen_tile(product.kind).isa));
  say(fmt::format("kernels    {} (encode {}, {}, rows {})", name_of(isa_in_use()),
                  name_of(best_fp32_tile().isa), screens, name_of(best_vector_ops().isa)));
  say(fmt::format("GPUs       {}", gpu_facts()));
  say(fmt::format("launcher   {}, {} rank(s) on {} node(s)", facts.launcher, facts.ranks,
                  facts.nodes));
  for (const std::string& setting : facts.settings) say(fmt::format("{:11}{}", "", setting));
  say(fmt::format("\n{}", rank_table(gather_ranks(launch, resolve_threads(0, facts)))));
  return 0;
}

}  // namespace megadict
