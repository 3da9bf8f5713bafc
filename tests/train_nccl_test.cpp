// Twenty training steps over the NCCL communicator (on its host-memory stand-in) against the same
// steps over MPI.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "comm/backends.h"
#include "support/mpi_main.h"
#include "support/train_bench.h"

namespace megadict {
namespace {

constexpr int kSteps = 20;

struct Outcome {
  std::vector<double> losses;
  at::Tensor w_enc, w_dec, b_dec;
};

Outcome train(const Case& c, Communicator& world, const MeshConfig& shape) {
  Bench bench(c, small_problem(c), world, shape);
  bench.config.total_steps = kSteps;
  StepWorkspace workspace = make_workspace(bench.state, "fp32");
  Outcome out;
  for (int step = 0; step < kSteps; ++step) {
    bench.problem.x_bd = random(bench.problem.x_bd.sizes(), 100 + static_cast<uint64_t>(step));
    int64_t index = 0;
    const StepResult result = train_step(
        bench.mesh, bench.config, [&] { return bench.micro(c, index++); }, true, bench.state,
        workspace);
    EXPECT_TRUE(result.finite);
    out.losses.push_back(result.loss);
  }
  const Dictionary& d = bench.state.dictionary;
  out.w_enc = d.w_enc_ld.clone();
  out.w_dec = d.w_dec_ld.clone();
  out.b_dec = d.b_dec_d.clone();
  return out;
}

TEST(TrainOverNccl, TwentyStepsEqualMpis) {
  std::unique_ptr<Communicator> mpi = make_mpi_world();
  const Case c{"topk_micro", "topk", "linear", 61, 16, 1.0 / 32};
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    const Outcome nccl = train(c, test_world(), shape), host = train(c, *mpi, shape);
    for (int step = 0; step < kSteps; ++step)
      EXPECT_NEAR(nccl.losses[static_cast<size_t>(step)], host.losses[static_cast<size_t>(step)],
                  1e-5 * host.losses[static_cast<size_t>(step)])
          << shape.data << "x" << shape.feature << " step " << step;
    EXPECT_TRUE(at::allclose(nccl.w_enc, host.w_enc, 1e-4, 1e-5));
    EXPECT_TRUE(at::allclose(nccl.w_dec, host.w_dec, 1e-4, 1e-5));
    EXPECT_TRUE(at::allclose(nccl.b_dec, host.b_dec, 1e-4, 1e-5));
  }
}

}  // namespace
}  // namespace megadict
