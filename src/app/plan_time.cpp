#include "app/plan_time.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/range.h"
#include "train/encode_choice.h"

namespace megadict {

namespace {

constexpr double kFloat = 4;
// Candidates of the screen evaluated beside the listed best, measured: 35.6 for 32.
constexpr double kRescored = 1.15;

}  // namespace

TimePlan step_time(const PlanInput& in, int data_size, int feature_size, int ranks_per_node,
                   const Machine& machine) {
  const double share = machine.share(ranks_per_node), d = static_cast<double>(in.width);
  const auto latents = static_cast<double>(ceil_div(in.latents, feature_size));
  const auto rows = static_cast<double>(ceil_div(in.batch, data_size));
  const double codes = rows * static_cast<double>(in.k) / feature_size;  // of this shard
  const double row_bytes = kFloat * d, random = machine.random_rows * share,
               stream = machine.stream * share;
  const double screen_rate =
      in.screen_kind == ScreenKind::int8 ? machine.screen_rate : machine.screen_bf16_rate;
  const bool screened = screen_rate > 0 && (in.screen == PlanInput::Screen::always ||
                                            (in.screen == PlanInput::Screen::large_shards &&
                                             latents >= static_cast<double>(kFewestScreened)));
  TimePlan plan;
  const double operations = 2 * rows * latents * d;
  plan.encode = screened
                    ? operations / (screen_rate * share) +
                          kRescored * rows * static_cast<double>(in.listed()) * row_bytes / random
                    : operations / (machine.fp32_rate * share);
  // x, centred x, the residual and its gradient: some ten passes over the rows.
  plan.decode = codes * row_bytes / random + 10 * rows * row_bytes / stream;
  const double copies = 2.0 + 2.0 * static_cast<double>(in.moments);  // of both row sets
  const double own = latents / data_size;
  const double moved = in.lazy ? touched_latents(own, codes) : own;
  const bool one_pass = (data_size == 1 || in.tokens) && !in.clips;
  plan.update = (2 * codes * row_bytes + (one_pass ? 0.0 : 4 * latents * row_bytes)) / random +
                moved * copies * 2 * row_bytes / stream;
  if (screened)
    plan.update +=
        moved * (static_cast<double>(screen_product(in.screen_kind).padded(in.width)) + row_bytes) /
        stream;
  for (const Transfer& transfer : transfers(in, data_size, feature_size))
    if (transfer.bytes > 0 && std::string_view(transfer.step) != "aux")
      plan.exchange += machine.latency_s + static_cast<double>(transfer.bytes) / machine.received;
  return plan;
}

double save_time(const PlanInput& in, int nodes, const Machine& machine) {
  return machine.saved > 0 ? static_cast<double>(disk(in).checkpoint) / (machine.saved * nodes) : 0;
}

}  // namespace megadict
