#include "kernels/kernel_set.h"

#include <ATen/ATen.h>

#include <array>
#include <atomic>

#include "kernels/tensor_kernels.h"

namespace megadict {

const KernelSet kTensorKernels = tensor_kernel_set<>("tensor");

namespace {
std::atomic<const KernelSet*> chosen = nullptr;
}

std::span<const KernelSet> all_kernel_sets() {
  static const std::array<KernelSet, 2> sets = {kCpuKernels, kTensorKernels};
  return sets;
}

void use_kernels(const KernelSet* set) {
  chosen = set;
}

const KernelSet& kernels_for(const at::Tensor& like) {
  if (const KernelSet* set = chosen) return *set;
  return like.is_cpu() ? kCpuKernels : kTensorKernels;
}

}  // namespace megadict
