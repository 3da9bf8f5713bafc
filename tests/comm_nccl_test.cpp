// communicator_nccl.cpp on the stand-in: how it chooses GPUs, what it keeps off NCCL, and that it
// leaves buffers alone while they are in use. The collectives themselves are tested by
// comm_collectives_test.cpp, linked with the stand-in.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "comm/backends.h"
#include "nccl_standin/nccl.h"
#include "nccl_standin/standin.h"
#include "support/comm_values.h"
#include "support/every_communicator.h"

namespace megadict {
namespace {

// The error of an attempt to make a world of GPUs.
std::string world_refusal(LaunchFacts facts) {
  try {
    make_device_world(test_launch().world(), facts);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_TRUE(error.agreed());
    return error.line();
  }
  return "";
}

TEST(Gpu, IsChosenByTheLocalRank) {
  LaunchFacts facts = test_launch().facts();
  facts.local_rank = facts.rank + 60;
  make_device_world(test_launch().world(), facts);
  EXPECT_EQ(facts.gpu, (facts.rank + 60) % 64);
  EXPECT_EQ(facts.gpu_pci_id, fmt::format("0000:{:02x}:00.0", facts.gpu + 1));
}

TEST(Gpu, IsTheOnlyOneWhereEachRankSeesOne) {
  LaunchFacts facts = test_launch().facts();
  nccl_standin::set_visible_gpus(1);
  nccl_standin::set_pci_bus(0x10 + facts.rank);
  make_device_world(test_launch().world(), facts);
  EXPECT_EQ(facts.gpu, 0);
  EXPECT_EQ(facts.gpu_pci_id, fmt::format("0000:{:02x}:00.0", 0x10 + facts.rank));
  nccl_standin::set_visible_gpus(64);
  nccl_standin::set_pci_bus(1);
}

TEST(Gpu, IsRefusedTwice) {
  const LaunchFacts& facts = test_launch().facts();
  nccl_standin::set_visible_gpus(2);
  const std::string refusal = world_refusal(facts);
  nccl_standin::set_visible_gpus(64);
  if (facts.ranks < 3) {
    EXPECT_EQ(refusal, "");
  } else {
    EXPECT_EQ(refusal,
              "run.device cuda: ranks 0 and 2 of one node share the GPU 0000:01:00.0. hint: one "
              "rank per GPU: srun --ntasks-per-node=N --gpus-per-node=N --gpu-bind=none");
  }
}

TEST(Gpu, MissingOnOneRankStopsAll) {
  const LaunchFacts& facts = test_launch().facts();
  if (facts.rank == facts.ranks - 1) nccl_standin::set_visible_gpus(0);
  EXPECT_EQ(world_refusal(facts),
            fmt::format("run.device cuda: no GPU on {} (CUDA says no CUDA-capable device is "
                        "detected). hint: --run.device cpu, or ask the scheduler for "
                        "--gpus-per-node",
                        facts.host));
  nccl_standin::set_visible_gpus(64);
}

TEST(Nccl, CarriesHostTensorsOfTheStandIn) {
  Communicator& world = test_world();
  float value = 1;
  const int64_t before = nccl_standin::operations_done();
  world.all_reduce(view_of(&value, 1), ReduceOp::sum, "sum");
  EXPECT_EQ(value, static_cast<float>(world.size()));
  EXPECT_EQ(nccl_standin::operations_done(), before + 1);
}

TEST(Nccl, ComesAfterTheDefaultStream) {
  Communicator& world = test_world();
  std::vector<float> made(4, 3.0f), values(4);
  cudaMemcpyAsync(values.data(), made.data(), 4 * sizeof(float), cudaMemcpyHostToDevice, nullptr);
  world.all_reduce({values.data(), 4, DType::f32, Device::cuda}, ReduceOp::sum, "sum");
  for (const float value : values) EXPECT_EQ(value, 3.0f * static_cast<float>(world.size()));
}

TEST(Nccl, LeavesBitOrToTheHost) {
  Communicator& world = test_world();
  const int64_t before = nccl_standin::operations_done();
  uint64_t bits = uint64_t{1} << world.rank();
  world.all_reduce({&bits, 1, DType::u64, Device::cuda}, ReduceOp::bit_or, "fired");
  EXPECT_EQ(bits, (uint64_t{1} << world.size()) - 1);
  EXPECT_EQ(nccl_standin::operations_done(), before);
}

TEST(Nccl, DoesNotReduceUint16) {
  uint16_t value = 1, sum = 0;
  const BufferView view{&value, 1, DType::u16, Device::cuda};
  std::vector<uint16_t> all(static_cast<size_t>(test_world().size()));
  EXPECT_THROW(test_world().all_reduce(view, ReduceOp::sum, "x"), Error);
  EXPECT_THROW(
      test_world().reduce_scatter({all.data(), test_world().size(), DType::u16, Device::cuda},
                                  {&sum, 1, DType::u16, Device::cuda}, "x"),
      Error);
}

TEST(Nccl, MakesItsCommunicatorsOnFirstUse) {
  on_every_communicator([](Communicator& comm) { comm.barrier("meet"); });
}

// What the stand-in itself must notice, without which the tests above would say little.
TEST(StandIn, DoesNothingBeforeItIsAskedTo) {
  Communicator& host = test_launch().world();
  ncclUniqueId id{};
  if (host.rank() == 0) ncclGetUniqueId(&id);
  host.broadcast({&id, sizeof(id), DType::u8, Device::cpu}, 0, "id");
  ncclComm_t comm = nullptr;
  EXPECT_EQ(ncclCommInitRank(&comm, host.size(), id, host.rank()), ncclSuccess);
  float in = 1, out = 0;
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaEvent_t done = nullptr;
  cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
  EXPECT_EQ(ncclAllReduce(&in, &out, 1, ncclFloat32, ncclSum, comm, stream), ncclSuccess);
  cudaEventRecord(done, stream);
  EXPECT_NE(out, static_cast<float>(host.size()));
  EXPECT_EQ(cudaEventQuery(done), cudaErrorNotReady);
  EXPECT_NE(out, static_cast<float>(host.size()));
  while (cudaEventQuery(done) == cudaErrorNotReady) continue;
  EXPECT_EQ(out, static_cast<float>(host.size()));

  // A second one, whose input changes while it is under way.
  EXPECT_EQ(ncclAllReduce(&in, &out, 1, ncclFloat32, ncclSum, comm, stream), ncclSuccess);
  cudaEventRecord(done, stream);
  in = 2;
  ncclResult_t error = ncclSuccess;
  for (int i = 0; i < 100000 && error == ncclSuccess; ++i) {
    EXPECT_EQ(cudaEventQuery(done), cudaErrorNotReady);
    ncclCommGetAsyncError(comm, &error);
  }
  EXPECT_EQ(error, ncclInvalidUsage);
  EXPECT_STREQ(ncclGetLastError(comm),
               "all_reduce (sum) of 1 float32 from 0: the input changed before it was done");
  ncclCommAbort(comm);
  cudaEventDestroy(done);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace megadict
