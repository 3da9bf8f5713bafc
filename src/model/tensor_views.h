// Tensors as the raw buffers that comm and io take. The tensor must be contiguous and outlive the
// view.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/buffer_view.h"

namespace megadict {

BufferView view_of(at::Tensor& tensor);
ConstBufferView view_of(const at::Tensor& tensor);
at::ScalarType scalar_type_of(DType dtype);
DType dtype_of(at::ScalarType type);
at::Device device_of(const std::string& name, int local_rank);  // "cpu" | "cuda"

}  // namespace megadict
