// Every collective against its definition, on the world and on both axes of every mesh of its
// ranks, for every element type, odd and empty sizes, and with MPI calls cut into small chunks.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/background.h"
#include "base/error.h"
#include "comm/backends.h"
#include "comm/mesh.h"
#include "comm/watchdog.h"
#include "support/comm_values.h"
#include "support/every_communicator.h"
#include "support/mpi_main.h"

namespace megadict {
namespace {

constexpr int64_t kSizes[] = {0, 1, 3, 8, 257};

// The same for all element types and sizes.
void on_everything(const std::function<void(Communicator&, DType, int64_t)>& body) {
  on_every_communicator([&](Communicator& comm) {
    for (const DType dtype : kAllDTypes)
      for (const int64_t count : kSizes) {
        SCOPED_TRACE(fmt::format("axis {}, {} x {}", comm.axis(), name_of(dtype), count));
        comm.reset_counts();
        body(comm, dtype, count);
      }
  });
}

Values samples(DType dtype, int64_t count, int rank) {
  Values values(dtype, count);
  for (int64_t i = 0; i < count; ++i) values.set(i, sample_value(rank, i));
  return values;
}

int64_t bytes_of(DType dtype, int64_t count) {
  return static_cast<int64_t>(size_of(dtype)) * count;
}

class Chunks {
 public:
  explicit Chunks(int64_t elements) : before_(mpi_chunk_elements()) {
    set_mpi_chunk_elements(elements);
  }
  ~Chunks() { set_mpi_chunk_elements(before_); }

 private:
  int64_t before_;
};

double reduced(ReduceOp op, int ranks, int64_t i) {
  double value = sample_value(0, i);
  for (int r = 1; r < ranks; ++r) {
    const double next = sample_value(r, i);
    if (op == ReduceOp::sum) value += next;
    if (op == ReduceOp::max) value = std::max(value, next);
    if (op == ReduceOp::min) value = std::min(value, next);
    if (op == ReduceOp::bit_or)
      value = static_cast<double>(static_cast<int>(value) | static_cast<int>(next));
  }
  return value;
}

bool is_unsigned(DType dtype) {
  return name_of(dtype).starts_with("uint");
}

// NCCL has no uint16; comm_nccl_test.cpp sees to its refusal.
bool can_reduce(DType dtype) {
  return test_device() == Device::cpu || dtype != DType::u16;
}

void all_reduce_is_right(Communicator& comm, DType dtype, int64_t count) {
  const int64_t full = bytes_of(dtype, count), p = comm.size();
  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min, ReduceOp::bit_or}) {
    if (op == ReduceOp::bit_or && !is_unsigned(dtype)) continue;
    if (op != ReduceOp::bit_or && !can_reduce(dtype)) continue;
    Values values = samples(dtype, count, comm.rank());
    comm.reset_counts();
    comm.all_reduce(values.view(), op, "reduce");
    for (int64_t i = 0; i < count; ++i)
      EXPECT_EQ(values.get(i), reduced(op, comm.size(), i))
          << "op " << int(op) << ", element " << i;
    const int64_t formula = op == ReduceOp::bit_or ? full * (p - 1) : 2 * full * (p - 1) / p;
    EXPECT_EQ(comm.counts().at("reduce").bytes, formula);
    EXPECT_EQ(comm.counts().at("reduce").calls, 1);
  }
}

void all_gather_is_right(Communicator& comm, DType dtype, int64_t count) {
  const Values mine = samples(dtype, count, comm.rank());
  Values all(dtype, count * comm.size()), in_place(dtype, count * comm.size());
  for (int64_t i = 0; i < count; ++i)
    in_place.set(comm.rank() * count + i, sample_value(comm.rank(), i));
  comm.all_gather(mine.view(), all.view(), "gather");
  comm.all_gather(in_place.part(comm.rank() * count, count), in_place.view(), "gather in place");
  for (int r = 0; r < comm.size(); ++r)
    for (int64_t i = 0; i < count; ++i) {
      EXPECT_EQ(all.get(r * count + i), sample_value(r, i)) << "from " << r << ", element " << i;
      EXPECT_EQ(in_place.get(r * count + i), sample_value(r, i));
    }
  const int64_t full = bytes_of(dtype, count * comm.size());
  EXPECT_EQ(comm.counts().at("gather").bytes, full * (comm.size() - 1) / comm.size());
}

// Three at once with a blocking call in between, waited for in another order than started.
void halves_are_right(Communicator& comm, DType dtype, int64_t count) {
  const int64_t p = comm.size();
  const Values mine = samples(dtype, count, comm.rank());
  const Values all = samples(dtype, count * p, comm.rank());
  Values gathered(dtype, count * p), block(dtype, count), exchanged(dtype, count * p), sum = mine;
  const std::vector<int64_t> counts(static_cast<size_t>(p), count);
  Pending gather = comm.start_all_gather(mine.view(), gathered.view(), "gather");
  Pending scatter;
  if (can_reduce(dtype)) {
    scatter = comm.start_reduce_scatter(all.view(), block.view(), "scatter");
    comm.all_reduce(sum.view(), ReduceOp::sum, "reduce");
  }
  Pending exchange =
      comm.start_all_to_all_v(all.view(), counts, exchanged.view(), counts, "exchange");
  give_way();
  exchange.wait();
  gather.wait();
  scatter.wait();
  scatter.wait();  // there is nothing to wait for any more
  for (int r = 0; r < p; ++r)
    for (int64_t i = 0; i < count; ++i) {
      EXPECT_EQ(gathered.get(r * count + i), sample_value(r, i));
      EXPECT_EQ(exchanged.get(r * count + i), sample_value(r, comm.rank() * count + i));
    }
  for (int64_t i = 0; i < count && can_reduce(dtype); ++i) {
    EXPECT_EQ(block.get(i), reduced(ReduceOp::sum, comm.size(), comm.rank() * count + i));
    EXPECT_EQ(sum.get(i), reduced(ReduceOp::sum, comm.size(), i));
  }
  for (const char* name : {"gather", "scatter", "exchange"}) {
    if (comm.counts().count(name) == 0) continue;  // not reduced
    EXPECT_EQ(comm.counts().at(name).bytes, bytes_of(dtype, count) * (p - 1));
    EXPECT_EQ(comm.counts().at(name).calls, 1);
  }
}

void reduce_scatter_is_right(Communicator& comm, DType dtype, int64_t count) {
  if (!can_reduce(dtype)) return;
  const Values all = samples(dtype, count * comm.size(), comm.rank());
  Values mine(dtype, count);
  comm.reduce_scatter(all.view(), mine.view(), "scatter");
  for (int64_t i = 0; i < count; ++i)
    EXPECT_EQ(mine.get(i), reduced(ReduceOp::sum, comm.size(), comm.rank() * count + i)) << i;
  const int64_t full = bytes_of(dtype, count * comm.size());
  EXPECT_EQ(comm.counts().at("scatter").bytes, full * (comm.size() - 1) / comm.size());
}

void all_to_all_is_right(Communicator& comm, DType dtype, int64_t count) {
  const Values send = samples(dtype, count * comm.size(), comm.rank());
  Values recv(dtype, count * comm.size());
  comm.all_to_all(send.view(), recv.view(), "exchange");
  for (int r = 0; r < comm.size(); ++r)
    for (int64_t i = 0; i < count; ++i)
      EXPECT_EQ(recv.get(r * count + i), sample_value(r, comm.rank() * count + i)) << r << ' ' << i;
  const int64_t foreign = bytes_of(dtype, count * (comm.size() - 1));
  EXPECT_EQ(comm.counts().at("exchange").bytes, foreign);
}

// Rank s sends (count + s + 2t) % 4 * count elements to rank t; some blocks are empty.
int64_t uneven(int64_t count, int from, int to) {
  return (count + from + 2 * to) % 4 * count;
}

void all_to_all_v_is_right(Communicator& comm, DType dtype, int64_t count) {
  std::vector<int64_t> send_counts, recv_counts;
  int64_t sent = 0, received = 0, foreign = 0;
  for (int r = 0; r < comm.size(); ++r) {
    send_counts.push_back(uneven(count, comm.rank(), r));
    recv_counts.push_back(uneven(count, r, comm.rank()));
    sent += send_counts.back();
    received += recv_counts.back();
    if (r != comm.rank()) foreign += recv_counts.back();
  }
  const Values send = samples(dtype, sent, comm.rank());
  Values recv(dtype, received);
  comm.all_to_all_v(send.view(), send_counts, recv.view(), recv_counts, "uneven");
  int64_t at = 0;
  for (int r = 0; r < comm.size(); ++r) {
    int64_t begin = 0;  // of the block that r sends to this rank
    for (int to = 0; to < comm.rank(); ++to) begin += uneven(count, r, to);
    for (int64_t i = 0; i < recv_counts[static_cast<size_t>(r)]; ++i)
      EXPECT_EQ(recv.get(at++), sample_value(r, begin + i)) << "from " << r << ", element " << i;
  }
  EXPECT_EQ(comm.counts().at("uneven").bytes, bytes_of(dtype, foreign));
}

void broadcast_is_right(Communicator& comm, DType dtype, int64_t count) {
  for (int root = 0; root < comm.size(); ++root) {
    Values values = samples(dtype, count, comm.rank());
    comm.reset_counts();
    comm.broadcast(values.view(), root, "spread");
    for (int64_t i = 0; i < count; ++i) EXPECT_EQ(values.get(i), sample_value(root, i)) << i;
    const int64_t expected = comm.rank() == root ? 0 : bytes_of(dtype, count);
    EXPECT_EQ(comm.counts().at("spread").bytes, expected);
  }
}

struct Check {
  const char* name;
  void (*run)(Communicator&, DType, int64_t);
};

constexpr Check kChecks[] = {
    {"all_reduce", all_reduce_is_right},
    {"all_gather", all_gather_is_right},
    {"reduce_scatter", reduce_scatter_is_right},
    {"all_to_all", all_to_all_is_right},
    {"all_to_all_v", all_to_all_v_is_right},
    {"broadcast", broadcast_is_right},
    {"halves", halves_are_right},
};

class Collectives : public ::testing::TestWithParam<Check> {};

TEST_P(Collectives, KeepsItsDefinition) {
  on_everything(GetParam().run);
}

TEST_P(Collectives, KeepsItInChunks) {
  const Chunks chunks(5);
  on_everything(GetParam().run);
}

TEST_P(Collectives, KeepsItWhileRanksCompareTheirCalls) {
  DebugConfig debug;
  debug.check_collectives = true;
  start_watchdog(debug);
  on_everything(GetParam().run);
  start_watchdog({});
}

INSTANTIATE_TEST_SUITE_P(Comm, Collectives, ::testing::ValuesIn(kChecks),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Split, OrdersByKeyAndKeepsColoursApart) {
  Communicator& world = test_world();
  const auto part = world.split(world.rank() % 2, -world.rank(), "half");
  EXPECT_EQ(part->axis(), "half");
  EXPECT_EQ(part->size(), (world.size() + (world.rank() % 2 == 0 ? 1 : 0)) / 2);
  std::vector<int32_t> members(static_cast<size_t>(part->size()));
  const int32_t me = world.rank();
  part->all_gather(view_of(&me, 1), view_of(members.data(), part->size()), "members");
  for (size_t i = 0; i < members.size(); ++i) {
    EXPECT_EQ(members[i] % 2, me % 2);
    if (i > 0) {
      EXPECT_LT(members[i], members[i - 1]);
    }
  }
}

TEST(Barrier, HoldsEverybody) {
  on_every_communicator([](Communicator& comm) {
    comm.reset_counts();
    comm.barrier("meet");
    EXPECT_EQ(comm.counts().at("meet").calls, 1);
    EXPECT_EQ(comm.counts().at("meet").bytes, 0);
    EXPECT_GE(comm.seconds(), 0);
  });
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::error);
    return error.line();
  }
  return "";
}

// Each refusal comes before anything is sent, so that ranks do not wait for one another here.
TEST(Misuse, IsNamed) {
  Communicator& world = test_world();
  const int p = world.size();
  std::vector<float> a(static_cast<size_t>(8 * p)), b(static_cast<size_t>(8 * p));
  std::vector<int32_t> ints(static_cast<size_t>(8 * p));
  const std::string where = fmt::format("(axis world, rank {} of {}): ", world.rank(), p);
  EXPECT_EQ(refusal([&] { world.all_gather(view_of(a.data(), 2), view_of(b.data(), 3), "tau"); }),
            fmt::format("all_gather 'tau' {}output holds 3 elements, {} ranks of 2 need {}", where,
                        p, 2 * p));
  EXPECT_EQ(refusal([&] {
              world.reduce_scatter(view_of(a.data(), 8 * p), view_of(ints.data(), 8), "x");
            }),
            "reduce_scatter 'x' " + where + "input is float32, output int32");
  EXPECT_EQ(refusal([&] { world.all_reduce(view_of(a.data(), 1), ReduceOp::bit_or, "x"); }),
            "all_reduce 'x' " + where + "bit_or of float32; it takes unsigned integers");
  EXPECT_EQ(refusal([&] { world.broadcast(view_of(a.data(), 1), p, "x"); }),
            fmt::format("broadcast 'x' {}root {} of {} ranks", where, p, p));
  EXPECT_EQ(refusal([&] { world.all_to_all(view_of(a.data(), p), view_of(a.data(), p), "x"); }),
            "all_to_all 'x' " + where + "input and output overlap");
  const std::vector<int64_t> counts(static_cast<size_t>(p), 2);
  EXPECT_EQ(refusal([&] {
              world.all_to_all_v(view_of(a.data(), 2 * p), counts, view_of(b.data(), 3 * p), counts,
                                 "x");
            }),
            fmt::format("all_to_all_v 'x' {}the output holds {} elements, its counts say {}", where,
                        3 * p, 2 * p));
  EXPECT_EQ(refusal([&] {
              world.broadcast({nullptr, 4, DType::f32, Device::cpu}, 0, "x");
            }),
            "broadcast 'x' " + where + "the buffer of 4 elements has no memory");
}

}  // namespace
}  // namespace megadict
