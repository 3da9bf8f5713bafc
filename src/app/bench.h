// What `megadict bench` prints: a rate beside the bound that was measured in the same run, and how
// many results differ from the reference.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/mesh.h"
#include "data/config.h"

namespace megadict {

struct BenchLine {
  std::string name;
  double median_s = 0, least_s = 0, most_s = 0;
  double work = 0;   // floating-point operations or bytes
  std::string unit;  // "GFLOP/s", "GB/s"
  double bound = 0;  // of work / s, measured; 0 = none
  std::string bound_name;
  int64_t compared = 0, wrong = 0;  // results beside the reference
  double processor_s = 0;           // of all threads of a rank; 0 = not measured
};

struct BenchReport {
  std::string title;
  std::vector<BenchLine> lines;
};

// Seconds of `repeats` calls after one that warms up.
std::vector<double> times_of(int repeats, const std::function<void()>& work);
BenchLine line_of(std::string name, std::vector<double> seconds, double work, std::string unit);

std::vector<std::string> table_of(const BenchReport& report);
nlohmann::ordered_json json_of(const BenchReport& report);

struct KernelBench {
  int64_t width = 768, latents = 32768, k = 32, rows = 4096;
  int repeats = 5;
};
BenchReport bench_kernels(const KernelBench& options);

struct StepBench {
  int64_t width = 768, latents = 32768, k = 32, rows = 4096, k_aux = 0, dead = 0;
  int64_t micro = 0;  // rows of a micro-batch; 0 = all
  int repeats = 5;
  std::string optimiser = "adam", encode = "screen_int8", set = "auto", exchange = "gradients";
  MeshConfig mesh;
};
// Collective over `world`; rank 0's times.
BenchReport bench_step(Communicator& world, const StepBench& options);

struct LabBench {
  int64_t sae_steps = 40000, codes_steps = 20000;
  int repeats = 3;
};
// Whole trainings of the laboratory's default problem.
BenchReport bench_lab(const LabBench& options);

struct LoaderBench {
  DataConfig data;
  bool cold = false;  // drop the shards from the page cache before every pass
  int repeats = 3;
  MeshConfig mesh;
};
// Whole passes of the batch stream over the shards, by turns with plain reads of their files;
// every row is compared with what the HDF5 library reads. Collective over `world`; the times are
// those of the slowest rank, the bytes those of all.
BenchReport bench_loader(Communicator& world, const LoaderBench& options);

}  // namespace megadict
