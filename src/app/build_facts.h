// What this binary was built from and what the machine offers it; for `info` and env.json.
#pragma once

#include <string>
#include <vector>

#include "base/version.h"

namespace megadict {

std::string compiler();                   // "GCC 12.2.0, Release"
std::string torch_facts();                // "2.11.0, AVX512, ..."
std::string processor();                  // "model name, N online processors, memory"
std::string gpu_facts();                  // "2 visible", "none: built without CUDA"
std::vector<std::string> cpu_features();  // those that kernels may use: "avx2", "amx-int8", ...

}  // namespace megadict
