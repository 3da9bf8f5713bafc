// The scalars of a step that all ranks need: they ride in one small all-reduce together with
// b_dec's gradient (d + 16 fp32 words).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "base/stop_request.h"
#include "comm/mesh.h"

namespace megadict {

struct StepSums {
  double square = 0;                        // sum |r|^2 over my rows, by var_total
  std::vector<double> prefix_squares = {};  // the same of the prefixes but the last (matryoshka.h)
  int64_t l0 = 0;                           // codes of my rows and latents
  double l1 = 0;
  double preact = 0;       // train/preact.h
  double gate_square = 0;  // as `square`, of what the gates alone reconstruct (model/gated.h)
  double not_finite = 0;   // things that were not finite
  double requeue = 0, terminate = 0;
  double clock_s = 0;  // rank 0's alone

  void stop(StopRequest request) {
    requeue = request == StopRequest::requeue ? 1 : 0;
    terminate = request == StopRequest::terminate ? 1 : 0;
  }
};

// Sums over the mesh, in place; returns b_dec's whole gradient [d] fp32. Collective over world.
at::Tensor all_reduce_sums(const Mesh& mesh, const at::Tensor& b_dec_d, StepSums& sums);

}  // namespace megadict
