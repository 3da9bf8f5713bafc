#include "kernels/kernel_set.h"

#include <ATen/ATen.h>

#include <array>

namespace megadict {

std::span<const KernelSet> all_kernel_sets() {
  static const std::array<KernelSet, 2> sets = {kCpuKernels, kTensorKernels};
  return sets;
}

const KernelSet& kernels_for(const at::Tensor& like) {
  return like.is_cpu() ? kCpuKernels : kTensorKernels;
}

}  // namespace megadict
