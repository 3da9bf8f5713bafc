#include "app/plan_time.h"

#include <gtest/gtest.h>

namespace megadict {
namespace {

Machine machine() {
  Machine m;
  m.threads = 4;
  m.fp32_rate = 2e11;
  m.screen_rate = 8e11;
  m.random_rows = 1e10;
  m.stream = 3e10;
  m.latency_s = 1e-5;
  m.received = 5e9;
  return m;
}

PlanInput large() {
  PlanInput in;
  in.width = 768;
  in.latents = 131072;
  in.k = 32;
  in.batch = in.micro = 4096;
  return in;
}

TEST(StepTime, EncodeIsItsOperationsOverTheRate) {
  PlanInput in = large();
  const double operations = 2.0 * 4096 * 131072 * 768;
  EXPECT_DOUBLE_EQ(step_time(in, 1, 1, 1, machine()).encode, operations / 2e11);
  in.screen = PlanInput::Screen::always;
  const double rescored = 1.15 * 4096 * 32 * 768 * 4 / 1e10;
  EXPECT_DOUBLE_EQ(step_time(in, 1, 1, 1, machine()).encode, operations / 8e11 + rescored);
  in.screen_kind = ScreenKind::bf16;
  Machine with_bf16 = machine();
  with_bf16.screen_bf16_rate = 4e11;
  EXPECT_DOUBLE_EQ(step_time(in, 1, 1, 1, with_bf16).encode, operations / 4e11 + rescored);
  EXPECT_DOUBLE_EQ(step_time(in, 1, 1, 1, machine()).encode, operations / 2e11);  // has none
  in.screen_kind = ScreenKind::int8;
  Machine without = machine();
  without.screen_rate = 0;
  EXPECT_DOUBLE_EQ(step_time(in, 1, 1, 1, without).encode, operations / 2e11);
}

TEST(StepTime, RanksOfANodeShareItAndPayForTheExchange) {
  const PlanInput in = large();
  const TimePlan whole = step_time(in, 1, 1, 1, machine()),
                 half = step_time(in, 1, 2, 2, machine());
  EXPECT_DOUBLE_EQ(whole.exchange, 0);
  EXPECT_DOUBLE_EQ(half.encode, whole.encode);
  EXPECT_GT(half.exchange, 0);
  const TimePlan apart = step_time(in, 1, 2, 1, machine());
  EXPECT_DOUBLE_EQ(apart.encode, whole.encode / 2);
  EXPECT_GT(step_time(in, 2, 1, 2, machine()).exchange, half.exchange);
}

TEST(SaveTime, IsTheCheckpointOverWhatAllNodesWrite) {
  const PlanInput in = large();
  Machine m = machine();
  EXPECT_EQ(save_time(in, 1, m), 0);
  m.saved = 1e9;
  EXPECT_DOUBLE_EQ(save_time(in, 2, m), static_cast<double>(disk(in).checkpoint) / 2e9);
}

TEST(StepTime, ALazyOptimiserMovesWhatFires) {
  PlanInput in = large();
  in.moments = 1;
  const double dense = step_time(in, 1, 1, 1, machine()).update;
  in.lazy = true;
  EXPECT_LT(step_time(in, 1, 1, 1, machine()).update, dense);
}

}  // namespace
}  // namespace megadict
