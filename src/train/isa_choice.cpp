#include "train/isa_choice.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "kernels/kernel_set.h"

namespace megadict {

namespace {

// The best that all ranks have.
Isa common_isa(Communicator& world) {
  auto least = static_cast<int32_t>(best_isa());
  world.all_reduce(view_of(&least, 1), ReduceOp::min, "instruction sets");
  return static_cast<Isa>(least);
}

}  // namespace

Isa resolve_isa(const std::string& asked, Isa common, bool was_auto, bool deterministic) {
  Isa isa = asked == "auto" ? common : isa_named(asked);
  // No version above adds to sums in fp32: what a deterministic run's bits rest on.
  if (deterministic && was_auto) isa = std::min(isa, Isa::avx512);
  if (isa <= common) return isa;
  const std::string lacks =
      fmt::format("some rank's processor lacks {}; all have {}", asked, name_of(common));
  if (!was_auto)
    fail_agreed(ExitCode::usage, fmt::format("kernels.isa = {}: {}", asked, lacks),
                fmt::format("--kernels.isa {}", name_of(common)));
  if (deterministic)
    fail_agreed(
        ExitCode::usage,
        fmt::format("run.deterministic: the run used kernels.isa = {}, and {}", asked, lacks),
        fmt::format("go on where every processor has {}, or --kernels.isa {} for other bits "
                    "from here on",
                    asked, name_of(common)));
  note(fmt::format("kernels.isa: {} ({})", name_of(common), lacks));
  return common;
}

std::string choose_kernels(Communicator& world, const KernelConfig& asked, bool was_auto,
                           bool deterministic) {
  const Isa isa = resolve_isa(asked.isa, common_isa(world), was_auto, deterministic);
  use_isa(isa);
  use_kernels(asked.set == "tensor" ? &kTensorKernels : nullptr);
  return std::string(name_of(isa));
}

}  // namespace megadict
