#include "kernels/isa.h"

#include <fmt/format.h>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>

#include "base/error.h"

namespace megadict {

namespace {

constexpr IsaFact kIsas[] = {
    {Isa::amx, "amx", "AMX tiles, int8 and bf16, beside all of AVX-512 below"},
    {Isa::avx512_bf16, "avx512_bf16", "AVX-512 F, BW, VL, VNNI and BF16"},
    {Isa::avx512_vnni, "avx512_vnni", "AVX-512 F, BW, VL and VNNI"},
    {Isa::avx512, "avx512", "AVX-512 F, BW, VL"},
    {Isa::avx2, "avx2", "AVX2 and FMA"},
    {Isa::scalar, "scalar", "plain code of the compiler"},
};

#if defined(__x86_64__) && defined(__linux__)
// The kernel keeps room for a thread's tiles only where the process has asked for it. Asked once,
// before any thread runs; kernels without tiles refuse.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#else
bool may_use_tiles() {
  return false;
}
#endif

bool has(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  switch (isa) {
    case Isa::amx:
      return bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
             __builtin_cpu_supports("amx-bf16") && may_use_tiles();
    case Isa::avx512_bf16:
      return bf16;
    case Isa::avx512_vnni:
      return vnni;
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
    case Isa::scalar:
      return true;
  }
#endif
  return isa == Isa::scalar;
}

}  // namespace

std::span<const IsaFact> all_isas() {
  return kIsas;
}

std::string_view name_of(Isa isa) {
  for (const IsaFact& fact : kIsas)
    if (fact.isa == isa) return fact.name;
  return "?";
}

Isa isa_named(std::string_view name) {
  for (const IsaFact& fact : kIsas)
    if (fact.name == name) return fact.isa;
  fail_agreed(ExitCode::usage, fmt::format("there is no instruction set '{}'", name),
              "megadict train --help");
}

Isa best_isa() {
  static const Isa best = [] {
    for (const IsaFact& fact : kIsas)
      if (has(fact.isa)) return fact.isa;
    return Isa::scalar;
  }();
  return best;
}

namespace {
std::atomic<Isa> in_use = best_isa();
}

Isa isa_in_use() {
  return in_use.load(std::memory_order_relaxed);
}

void use_isa(Isa isa) {
  if (isa > best_isa())
    fail(ExitCode::usage,
         fmt::format("this processor lacks {}; it has {}", name_of(isa), name_of(best_isa())));
  in_use = isa;
}

}  // namespace megadict
