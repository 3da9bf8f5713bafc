#include "model/tensor_views.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace megadict {

namespace {

struct TypePair {
  DType dtype;
  at::ScalarType type;
};

constexpr TypePair kTypes[] = {
    {DType::f16, at::kHalf},   {DType::bf16, at::kBFloat16}, {DType::f32, at::kFloat},
    {DType::f64, at::kDouble}, {DType::i32, at::kInt},       {DType::i64, at::kLong},
    {DType::u8, at::kByte},
};

}  // namespace

at::ScalarType scalar_type_of(DType dtype) {
  for (const TypePair& pair : kTypes)
    if (pair.dtype == dtype) return pair.type;
  fail(ExitCode::error, "no tensor type for " + std::string(name_of(dtype)));
}

DType dtype_of(at::ScalarType type) {
  for (const TypePair& pair : kTypes)
    if (pair.type == type) return pair.dtype;
  fail(ExitCode::error, std::string("no buffer type for tensor type ") + c10::toString(type));
}

BufferView view_of(at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous());
  return {tensor.mutable_data_ptr(), tensor.numel(), dtype_of(tensor.scalar_type()),
          tensor.is_cuda() ? Device::cuda : Device::cpu};
}

ConstBufferView view_of(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous());
  return {tensor.const_data_ptr(), tensor.numel(), dtype_of(tensor.scalar_type()),
          tensor.is_cuda() ? Device::cuda : Device::cpu};
}

at::Device device_of(const std::string& name, int local_rank) {
  if (name == "cpu") return at::Device(at::kCPU);
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(local_rank));
}

}  // namespace megadict
