#include "app/bench_comm.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

// Element i of rank r: a small integer, so that sums are exact in any order.
float value(int64_t rank, int64_t i) {
  return static_cast<float>((i * 5 + rank * 3) % 17);
}

float sum_of_ranks(int64_t ranks, int64_t i) {
  float sum = 0;
  for (int64_t r = 0; r < ranks; ++r) sum += value(r, i);
  return sum;
}

// Blocks of all_to_all_v: between ranks of different parity twice as long.
int64_t uneven(int64_t from, int64_t to, int64_t block) {
  return block * (1 + (from + to) % 2);
}

std::vector<int64_t> uneven_blocks(const Communicator& comm, int64_t block) {
  std::vector<int64_t> counts;
  for (int r = 0; r < comm.size(); ++r) counts.push_back(uneven(comm.rank(), r, block));
  return counts;
}

int64_t uneven_total(const Communicator& comm, int64_t block) {
  int64_t total = 0;
  for (int64_t count : uneven_blocks(comm, block)) total += count;
  return total;
}

// What it receives from rank s lies behind the blocks of the ranks before s on both sides.
float uneven_expected(const Communicator& comm, int64_t block, int64_t i) {
  int64_t from = 0;
  while (i >= uneven(from, comm.rank(), block)) i -= uneven(from++, comm.rank(), block);
  for (int64_t to = 0; to < comm.rank(); ++to) i += uneven(from, to, block);
  return value(from, i);
}

// One row per collective. `block` is the size of a rank's part. Without an input the output is
// worked on in place and holds the rank's own values before.
struct Collective {
  const char* name;
  int64_t (*inputs)(const Communicator&, int64_t block);
  int64_t (*outputs)(const Communicator&, int64_t block);
  void (*run)(Communicator&, int64_t block, const at::Tensor& in, at::Tensor& out);
  float (*expected)(const Communicator&, int64_t block, int64_t i);
};

int64_t none(const Communicator&, int64_t) {
  return 0;
}
int64_t one_block(const Communicator&, int64_t block) {
  return block;
}
int64_t all_blocks(const Communicator& comm, int64_t block) {
  return block * comm.size();
}

constexpr const char* kName = "bench";

constexpr Collective kCollectives[] = {
    {"all_reduce", none, all_blocks,
     [](Communicator& comm, int64_t, const at::Tensor&, at::Tensor& out) {
       comm.all_reduce(view_of(out), ReduceOp::sum, kName);
     },
     [](const Communicator& comm, int64_t, int64_t i) { return sum_of_ranks(comm.size(), i); }},
    {"all_gather", one_block, all_blocks,
     [](Communicator& comm, int64_t, const at::Tensor& in, at::Tensor& out) {
       comm.all_gather(view_of(in), view_of(out), kName);
     },
     [](const Communicator&, int64_t block, int64_t i) { return value(i / block, i % block); }},
    {"reduce_scatter", all_blocks, one_block,
     [](Communicator& comm, int64_t, const at::Tensor& in, at::Tensor& out) {
       comm.reduce_scatter(view_of(in), view_of(out), kName);
     },
     [](const Communicator& comm, int64_t block, int64_t i) {
       return sum_of_ranks(comm.size(), comm.rank() * block + i);
     }},
    {"all_to_all", all_blocks, all_blocks,
     [](Communicator& comm, int64_t, const at::Tensor& in, at::Tensor& out) {
       comm.all_to_all(view_of(in), view_of(out), kName);
     },
     [](const Communicator& comm, int64_t block, int64_t i) {
       return value(i / block, comm.rank() * block + i % block);
     }},
    {"all_to_all_v", uneven_total, uneven_total,
     [](Communicator& comm, int64_t block, const at::Tensor& in, at::Tensor& out) {
       const std::vector<int64_t> counts = uneven_blocks(comm, block);
       comm.all_to_all_v(view_of(in), counts, view_of(out), counts, kName);
     },
     uneven_expected},
    {"broadcast", none, all_blocks,
     [](Communicator& comm, int64_t, const at::Tensor&, at::Tensor& out) {
       comm.broadcast(view_of(out), comm.size() - 1, kName);
     },
     [](const Communicator& comm, int64_t, int64_t i) { return value(comm.size() - 1, i); }},
    {"barrier", none, none,
     [](Communicator& comm, int64_t, const at::Tensor&, at::Tensor&) { comm.barrier(kName); },
     [](const Communicator&, int64_t, int64_t) { return 0.0f; }},
};

at::Tensor own_values(int64_t rank, int64_t count) {
  at::Tensor values = at::empty({count});
  float* to = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) to[i] = value(rank, i);
  return values;
}

int64_t count_wrong(const Collective& collective, const Communicator& comm, int64_t block,
                    const at::Tensor& out) {
  const at::Tensor host = out.to(at::kCPU);
  const float* got = host.const_data_ptr<float>();
  int64_t wrong = 0;
  for (int64_t i = 0; i < host.numel(); ++i)
    if (got[i] != collective.expected(comm, block, i)) ++wrong;
  return wrong;
}

// Seconds of one of `calls` calls in a row, on the slowest rank of the world.
double seconds_of(Communicator& world, int64_t calls, const std::function<void()>& call,
                  const at::Tensor& out) {
  world.barrier(kName);
  const double start = seconds_now();
  for (int64_t i = 0; i < calls; ++i) call();
  // A GPU has been asked only; its answer waits for the work.
  if (out.is_cuda() && out.numel() > 0) out[0].item<float>();
  double seconds = (seconds_now() - start) / static_cast<double>(calls);
  world.all_reduce(view_of(&seconds, 1), ReduceOp::max, kName);
  return seconds;
}

struct Subject {
  Communicator& world;
  const CommBench& options;
  at::Device device;
};

CommLine measure(const Subject& subject, const Collective& collective, Communicator& comm,
                 int64_t block) {
  const at::Tensor in = own_values(comm.rank(), collective.inputs(comm, block)).to(subject.device);
  at::Tensor out = own_values(comm.rank(), collective.outputs(comm, block)).to(subject.device);
  const auto call = [&] { collective.run(comm, block, in, out); };
  CommLine line{.collective = collective.name, .axis = comm.axis(), .ranks = comm.size()};
  comm.reset_counts();
  call();
  line.received = comm.counts().at(kName).bytes;
  line.compared = out.numel();
  line.wrong = count_wrong(collective, comm, block, out);
  line.bytes = 4 * std::max(in.numel(), out.numel());
  out.zero_();  // sums of sums would grow
  const double first_s = seconds_of(subject.world, 1, call, out);
  const double share_s = subject.options.seconds / subject.options.repeats;
  const int64_t calls = std::clamp<int64_t>(static_cast<int64_t>(share_s / first_s), 1, 10000);
  std::vector<double> seconds;
  for (int i = 0; i < subject.options.repeats; ++i)
    seconds.push_back(seconds_of(subject.world, calls, call, out));
  std::sort(seconds.begin(), seconds.end());
  line.calls = calls * subject.options.repeats;
  line.median_s = seconds[seconds.size() / 2];
  line.least_s = seconds.front();
  line.most_s = seconds.back();
  int64_t sums[2] = {line.compared, line.wrong}, most[2] = {line.bytes, line.received};
  subject.world.all_reduce(view_of(sums, 2), ReduceOp::sum, kName);
  subject.world.all_reduce(view_of(most, 2), ReduceOp::max, kName);
  line.compared = sums[0];
  line.wrong = sums[1];
  line.bytes = most[0];
  line.received = most[1];
  return line;
}

void measure_axis(const Subject& subject, Communicator& comm, CommReport& report) {
  for (const Collective& collective : kCollectives) {
    const bool sized = collective.outputs(comm, 1) > 0;
    int64_t last = -1;
    for (int64_t bytes = subject.options.least_bytes;; bytes *= subject.options.factor) {
      if (bytes > subject.options.most_bytes) break;
      const int64_t block = std::max<int64_t>(1, bytes / 4 / comm.size());
      if (block == last) continue;  // both are too small for so many ranks
      last = block;
      report.lines.push_back(measure(subject, collective, comm, block));
      if (!sized) break;
    }
  }
}

}  // namespace

CommReport bench_comm(Communicator& world, const CommBench& options) {
  const Mesh mesh = make_mesh(world, resolve_mesh(options.mesh, world.size()));
  const Subject subject{world, options, options.device == "cpu" ? at::kCPU : at::kCUDA};
  CommReport report{mesh.name(), {}};
  measure_axis(subject, world, report);
  if (mesh.data_size() == 1 || mesh.feature_size() == 1) return report;
  measure_axis(subject, *mesh.feature, report);
  measure_axis(subject, *mesh.data, report);
  return report;
}

std::vector<std::string> table_of(const CommReport& report) {
  std::vector<std::string> out = {
      fmt::format(
          "collectives of float32: mesh {} (data x feature); algorithm = size / time, bus = "
          "bytes a rank receives from others / time",
          report.mesh),
      fmt::format("{:<15} {:<8} {:>5} {:>11} {:>11} {:>23} {:>10} {:>9} {:>7} {:>10}", "", "axis",
                  "ranks", "bytes", "us", "least..most", "algo GB/s", "bus GB/s", "#wrong",
                  "compared")};
  for (const CommLine& line : report.lines)
    out.push_back(
        fmt::format("{:<15} {:<8} {:>5} {:>11} {:>11.2f} {:>23} {:>10.3f} {:>9.3f} {:>7} {:>10}",
                    line.collective, line.axis, line.ranks, line.bytes, line.median_s * 1e6,
                    fmt::format("{:.2f}..{:.2f}", line.least_s * 1e6, line.most_s * 1e6),
                    line.algorithm_rate() / 1e9, line.bus_rate() / 1e9, line.wrong, line.compared));
  return out;
}

nlohmann::ordered_json json_of(const CommReport& report) {
  nlohmann::ordered_json lines = nlohmann::ordered_json::array();
  for (const CommLine& line : report.lines)
    lines.push_back({{"collective", line.collective},
                     {"axis", line.axis},
                     {"ranks", line.ranks},
                     {"bytes", line.bytes},
                     {"received_bytes", line.received},
                     {"calls", line.calls},
                     {"median_s", line.median_s},
                     {"least_s", line.least_s},
                     {"most_s", line.most_s},
                     {"algorithm_bytes_per_s", line.algorithm_rate()},
                     {"bus_bytes_per_s", line.bus_rate()},
                     {"compared", line.compared},
                     {"wrong", line.wrong}});
  return {{"title", "comm"}, {"mesh", report.mesh}, {"lines", lines}};
}

}  // namespace megadict
