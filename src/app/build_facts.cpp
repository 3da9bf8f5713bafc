#include "app/build_facts.h"

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <fmt/format.h>
#include <torch/version.h>
#include <unistd.h>

#include <fstream>

namespace megadict {

namespace {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line))
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

}  // namespace

std::string compiler() {
  return fmt::format("{} {}, {}", MEGADICT_COMPILER, __VERSION__, MEGADICT_BUILD_TYPE);
}

std::string torch_facts() {
  return fmt::format("{}, kernels {}, MKL {}", TORCH_VERSION, at::get_cpu_capability(),
                     at::hasMKL() ? "yes" : "no");
}

std::string processor() {
  const double bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  return fmt::format("{}, {} processors online, {:.1f} GiB", processor_name(),
                     sysconf(_SC_NPROCESSORS_ONLN), bytes / (1024.0 * 1024 * 1024));
}

std::string gpu_facts() {
  if (!at::detail::getCUDAHooks().hasCUDA()) return "none: this build has no CUDA";
  return fmt::format("{} visible", at::detail::getCUDAHooks().deviceCount());
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  const auto add = [&](const char* name, bool present) {
    if (present) found.emplace_back(name);
  };
  add("avx2", __builtin_cpu_supports("avx2"));
  add("fma", __builtin_cpu_supports("fma"));
  add("f16c", __builtin_cpu_supports("f16c"));
  add("avx512f", __builtin_cpu_supports("avx512f"));
  add("avx512vnni", __builtin_cpu_supports("avx512vnni"));
  add("avx512bf16", __builtin_cpu_supports("avx512bf16"));
  add("amx-tile", __builtin_cpu_supports("amx-tile"));
  add("amx-int8", __builtin_cpu_supports("amx-int8"));
  add("amx-bf16", __builtin_cpu_supports("amx-bf16"));
#endif
  return found;
}

}  // namespace megadict
