// What communicators of host memory promise beyond the collectives' definitions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "support/comm_values.h"
#include "support/every_communicator.h"

namespace megadict {
namespace {

// 256 + 1 is 256 again in bfloat16: only a sum in fp32 keeps the ones.
TEST(HalfSums, AreAccumulatedInFp32) {
  on_every_communicator([](Communicator& comm) {
    const int64_t count = 37, p = comm.size();
    const auto own = [&](int64_t i) { return comm.rank() == 0 ? 256.0 + double(i % 2) * 2 : 1.0; };
    for (const DType dtype : {DType::bf16, DType::f16}) {
      Values reduced(dtype, count), all(dtype, count * p), scattered(dtype, count);
      for (int64_t i = 0; i < count; ++i) reduced.set(i, own(i));
      for (int64_t i = 0; i < count * p; ++i) all.set(i, own(i % count));
      comm.all_reduce(reduced.view(), ReduceOp::sum, "reduce");
      comm.reduce_scatter(all.view(), scattered.view(), "scatter");
      for (int64_t i = 0; i < count; ++i) {
        const double exact = 256.0 + double(i % 2) * 2 + double(p - 1);
        Values rounded(dtype, 1);
        rounded.set(0, exact);
        EXPECT_EQ(reduced.get(i), rounded.get(0)) << name_of(dtype);
        EXPECT_EQ(scattered.get(i), rounded.get(0)) << name_of(dtype);
      }
    }
  });
}

std::string refusal(Communicator& comm, const BufferView& view) {
  try {
    comm.all_reduce(view, ReduceOp::sum, "x");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::error);
    return error.line();
  }
  return "";
}

TEST(GpuMemory, IsRefusedByHostCommunicators) {
  float value = 0;
  const BufferView gpu{&value, 1, DType::f32, Device::cuda};
  on_every_communicator([&](Communicator& comm) {
    EXPECT_THAT(refusal(comm, gpu),
                ::testing::EndsWith("GPU memory given to a communicator of host memory. hint: use "
                                    "the one of Launch::world_for(Device::cuda)"));
  });
}

}  // namespace
}  // namespace megadict
