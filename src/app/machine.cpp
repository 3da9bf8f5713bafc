#include "app/machine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "app/build_facts.h"
#include "app/options.h"
#include "base/clock.h"
#include "base/error.h"
#include "io/json_file.h"
#include "io/safetensors.h"
#include "kernels/kernel_set.h"
#include "kernels/rates.h"
#include "kernels/screen.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr int64_t kWidth = 768, kRows = 1024, kActive = 32;
constexpr int kMostCounted = 1 << 20;  // threads, devices of a node
constexpr int64_t kFewLatents = 4096, kManyLatents = 20480;

struct Number {
  const char* name;
  double Machine::*value;
  bool may_be_zero;
};
constexpr Number kNumbers[] = {
    {"fp32_flops_per_s", &Machine::fp32_rate, false},
    {"screen_ops_per_s", &Machine::screen_rate, true},
    {"screen_bf16_ops_per_s", &Machine::screen_bf16_rate, true},
    {"random_rows_bytes_per_s", &Machine::random_rows, false},
    {"stream_bytes_per_s", &Machine::stream, false},
    {"collective_latency_s", &Machine::latency_s, true},
    {"collective_bytes_per_s", &Machine::received, false},
    {"checkpoint_bytes_per_s", &Machine::saved, true},
};

// The median call while all ranks are at it. Not the best one: ranks that share a core take turns,
// and a call that none interrupted is not what a step gets.
double median_of(double seconds, const std::function<void()>& work) {
  work();
  std::vector<double> calls;
  for (const double start = seconds_now(); seconds_now() - start < seconds || calls.empty();) {
    const double begin = seconds_now();
    work();
    calls.push_back(seconds_now() - begin);
  }
  const auto middle = calls.begin() + static_cast<std::ptrdiff_t>(calls.size() / 2);
  std::nth_element(calls.begin(), middle, calls.end());
  return *middle;
}

// Operations per second from two sizes: what does not grow with the latents drops out.
template <class Encode>
double slope(double seconds, Encode&& encode) {
  const double few = median_of(seconds, [&] { encode(kFewLatents); }),
               many = median_of(seconds, [&] { encode(kManyLatents); });
  return 2.0 * static_cast<double>(kRows * kWidth * (kManyLatents - kFewLatents)) /
         std::max(many - few, 0.1 * many);
}

void measure_encode(Communicator& world, double seconds, Machine& out) {
  at::manual_seed(1);
  const at::Tensor x = at::randn({kRows, kWidth}), w = at::randn({kManyLatents, kWidth}) * 0.1,
                   bias = at::zeros({kManyLatents});
  const auto args = [&](int64_t latents) {
    return std::pair{w.narrow(0, 0, latents), bias.narrow(0, 0, latents)};
  };
  world.barrier("bench");
  out.fp32_rate = slope(seconds, [&](int64_t latents) {
    const auto [rows, its_bias] = args(latents);
    kCpuKernels.topk({x, rows, its_bias}, kActive);
  });
  const auto screened = [&](ScreenKind kind) {
    world.barrier("bench");
    if (!has_fast_screen(kind)) return 0.0;
    Screen few(w.narrow(0, 0, kFewLatents), kind), many(w, kind);
    return slope(seconds, [&](int64_t latents) {
      const auto [rows, its_bias] = args(latents);
      (latents == kFewLatents ? few : many).topk({x, rows, its_bias}, kActive);
    });
  };
  out.screen_rate = screened(ScreenKind::int8);
  out.screen_bf16_rate = screened(ScreenKind::bf16);
}

// An all-gather of next to nothing, and of much.
void measure_exchange(Communicator& world, double seconds, Machine& out) {
  if (world.size() == 1) {
    out.received = out.stream / 2;
    return;
  }
  constexpr int64_t kMuch = int64_t{1} << 20;
  const at::Tensor own = at::zeros({kMuch});
  at::Tensor all = at::zeros({kMuch * world.size()});
  const auto seconds_of = [&](int64_t count, int64_t calls) {
    world.barrier("bench");
    const double begin = seconds_now();
    for (int64_t i = 0; i < calls; ++i)
      world.all_gather({own.const_data_ptr<float>(), count},
                       {all.mutable_data_ptr<float>(), count * world.size()}, "bench");
    double mine = (seconds_now() - begin) / static_cast<double>(calls);
    world.all_reduce(view_of(&mine, 1), ReduceOp::max, "bench");
    return mine;
  };
  // Each half of the time.
  const auto measured = [&](int64_t count) {
    const double once = seconds_of(count, 2);
    return seconds_of(count,
                      std::clamp<int64_t>(static_cast<int64_t>(seconds / 2 / once), 2, 100000));
  };
  out.latency_s = measured(1);
  const double much = measured(kMuch);
  out.received = 4.0 * kMuch * (world.size() - 1) / std::max(much - out.latency_s, 1e-9);
}

// The way a checkpoint goes: one file of each rank, synced. At least twice: the first one may find
// an empty write cache in the disk.
double checkpoint_rate(Communicator& world, const std::string& folder, double seconds) {
  constexpr int64_t kRowsOfPart = int64_t{1} << 16;
  const at::Tensor part = at::ones({kRowsOfPart, kWidth});
  const std::string path = fmt::format("{}/megadict_bench_{}.tmp", folder, world.rank());
  double slowest = 0, spent = 0;
  try {
    for (int turn = 0; turn < 2 || spent < seconds; ++turn) {
      world.barrier("bench");
      const double begin = seconds_now();
      write_safetensors(path, {{"part", part.sizes().vec(), view_of(part)}});
      world.barrier("bench");
      double once = seconds_now() - begin;
      world.all_reduce(view_of(&once, 1), ReduceOp::max, "bench");
      slowest = std::max(slowest, once);
      spent += once;
    }
  } catch (...) {
    std::filesystem::remove(path);
    throw;
  }
  std::filesystem::remove(path);
  return 4.0 * kRowsOfPart * kWidth * world.size() / slowest;
}

}  // namespace

Machine measure_machine(Communicator& world, double seconds, const std::string& folder) {
  Machine out;
  out.name = processor();
  const double each = seconds / 8;
  // Each rank measures with its own threads at the same time: the node's rate is the sum.
  out.threads = at::get_num_threads() * world.size();
  measure_encode(world, each, out);
  world.barrier("bench");
  out.random_rows = random_row_rate(kWidth, each);
  world.barrier("bench");
  out.stream = stream_rate(each);
  for (double* rate :
       {&out.fp32_rate, &out.screen_rate, &out.screen_bf16_rate, &out.random_rows, &out.stream})
    world.all_reduce(view_of(rate, 1), ReduceOp::sum, "bench");
  measure_exchange(world, each, out);
  if (!folder.empty()) out.saved = checkpoint_rate(world, folder, each);
  return out;
}

nlohmann::ordered_json json_of(const Machine& machine) {
  nlohmann::ordered_json out = {
      {"name", machine.name}, {"measured", machine.measured}, {"threads", machine.threads}};
  for (const Number& number : kNumbers) out[number.name] = machine.*number.value;
  return out;
}

Machine read_machine(const std::string& path) {
  const nlohmann::json json = read_json(path);
  const auto refuse = [&](const std::string& what) {
    fail_agreed(ExitCode::bad_data, "machine file '" + path + "': " + what,
                "megadict bench machine --json FILE writes one");
  };
  Machine out;
  if (!json.is_object()) refuse("it holds no object");
  const auto its_name = json.find("name");
  out.name =
      its_name != json.end() && its_name->is_string() ? its_name->get<std::string>() : "unnamed";
  if (std::any_of(out.name.begin(), out.name.end(), [](unsigned char c) { return c < ' '; }))
    refuse("its name holds control characters");
  const auto number = [&](const char* name, bool may_be_zero) {
    const auto found = json.find(name);
    if (found == json.end() && may_be_zero) return 0.0;  // not known, as to an older version
    if (found == json.end() || !found->is_number()) refuse(std::string("no number '") + name + "'");
    const auto value = found->get<double>();
    if (!(value > 0) && !(may_be_zero && value == 0))
      refuse(std::string("'") + name + "' is not positive");
    if (value > 1e30 || (value < 1 && !may_be_zero))
      refuse(fmt::format("'{}' is {:g}; allowed: 1 to 1e30", name, value));
    return value;
  };
  const auto count = [&](const char* name, bool may_be_zero) {
    const double value = number(name, may_be_zero);
    if (value > kMostCounted || value != std::floor(value))
      refuse(
          fmt::format("'{}' is {:g}; allowed: whole numbers up to {}", name, value, kMostCounted));
    return static_cast<int>(value);
  };
  out.threads = count("threads", false);
  out.devices = count("devices", true);
  if (const auto measured = json.find("measured"); measured != json.end() && measured->is_boolean())
    out.measured = measured->get<bool>();
  for (const Number& one : kNumbers) out.*one.value = number(one.name, one.may_be_zero);
  return out;
}

}  // namespace megadict
