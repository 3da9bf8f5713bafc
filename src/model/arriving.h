// A tensor that a collective is still filling (Pending in comm/communicator.h).
#pragma once

#include <ATen/core/Tensor.h>

#include "comm/communicator.h"

namespace megadict {

struct Arriving {
  at::Tensor tensor;
  at::Tensor sent = {};  // read until then
  Pending pending = {};

  // Collective like the start. Once.
  at::Tensor wait() {
    pending.wait();
    sent.reset();
    return std::move(tensor);
  }
};

}  // namespace megadict
