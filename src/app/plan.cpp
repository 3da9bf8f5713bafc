#include "app/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/range.h"

namespace megadict {

namespace {

constexpr int64_t kFloat = 4;     // bytes; every payload but x is fp32
constexpr int64_t kCounter = 8;   // int64 per latent
constexpr int64_t kScalars = 16;  // loss, L0, norm, flags: they ride with b_dec's gradient
constexpr int64_t kFlagBytes = 16;

int64_t largest_shard(int64_t n, int parts) {
  return shard_of(n, parts, 0).size();
}

// Rows each member of a feature row owns of a micro-batch, padded (RowPart::slot).
int64_t slot_rows(int64_t rows, int data_size, int feature_size) {
  return ceil_div(ceil_div(rows, data_size), feature_size);
}

// One latent's numbers: encoder and decoder row and the encoder bias.
int64_t row_numbers(const PlanInput& in) {
  return (in.tied ? 1 : 2) * in.width + 1;
}

// Rows of other owners that a rank receives in one step, over all its micro-batches.
int64_t foreign_rows(const PlanInput& in, int data_size, int feature_size) {
  int64_t rows = 0;
  for (int64_t begin = 0; begin < in.batch; begin += in.micro)
    rows += slot_rows(std::min(in.micro, in.batch - begin), data_size, feature_size);
  return rows * (feature_size - 1);
}

// Steps 0 to 5; AuxK's are those of a step in which latents are dead.
void add_feature_axis(const PlanInput& in, int data_size, int feature_size,
                      std::vector<Transfer>& out) {
  const int64_t foreign = foreign_rows(in, data_size, feature_size);
  const int64_t vectors = kFloat * in.width * foreign, thresholds = 2 * kFloat * foreign;
  out.push_back({"0", "rows of x", "feature", in.sample_bytes * in.width * foreign});
  if (in.topk) {
    const int64_t candidates = candidates_per_row(in.k, feature_size);
    out.push_back({"2", "top-k candidates", "feature", kFloat * candidates * foreign});
    out.push_back({"3", "thresholds", "feature", thresholds});
  }
  out.push_back({"4", "partial reconstructions", "feature", vectors});
  out.push_back({"5", "residual gradient", "feature", vectors});
  if (in.k_aux == 0) return;
  const int64_t candidates = candidates_per_row(in.k_aux, feature_size);
  out.push_back({"aux", "AuxK candidates", "feature", kFloat * candidates * foreign});
  out.push_back({"aux", "AuxK thresholds", "feature", thresholds});
  out.push_back({"aux", "AuxK reconstructions", "feature", vectors});
  out.push_back({"aux", "AuxK gradient", "feature", vectors});
}

}  // namespace

PlanInput plan_input(const Config& config, int64_t width, int64_t sample_bytes) {
  PlanInput in;
  in.width = width;
  in.latents = config.model.n_latents;
  in.k = config.model.k;
  in.batch = config.data.batch_size;
  in.micro = config.data.micro_batch_size;
  in.k_aux = config.dead.auxk_alpha > 0 ? config.dead.k_aux : 0;
  in.sample_bytes = sample_bytes;
  in.queue = config.data.queue;
  in.keep = config.checkpoint.keep;
  in.topk = config.model.activation == "topk";
  in.tied = config.model.decoder == "tied";
  in.average = config.optim.ema > 0;
  return in;
}

int64_t candidates_per_row(int64_t k, int feature_size) {
  const double share = static_cast<double>(k) / feature_size;
  return std::min(k, static_cast<int64_t>(std::ceil(share + 6 * std::sqrt(share) + 4)));
}

std::vector<Transfer> transfers(const PlanInput& in, int data_size, int feature_size) {
  std::vector<Transfer> out;
  add_feature_axis(in, data_size, feature_size, out);
  const int64_t ranks = int64_t{data_size} * feature_size, others = data_size - 1;
  const int64_t latents = largest_shard(in.latents, feature_size);
  const int64_t owned_rows = kFloat * row_numbers(in) * ceil_div(latents, data_size);
  const int64_t scalars = kFloat * (in.width + kScalars);
  out.push_back({"7", "finite flags", "data", 2 * kFlagBytes * others / data_size});
  out.push_back({"7", "gradient rows", "data", owned_rows * others});
  out.push_back({"7", "updated rows", "data", owned_rows * others});
  out.push_back({"8", "b_dec gradient and scalars", "world", 2 * scalars * (ranks - 1) / ranks});
  out.push_back({"9", "fired bits", "data", others * ceil_div(latents, 8)});
  return out;
}

int64_t total_bytes(const std::vector<Transfer>& transfers, const std::string& axis) {
  int64_t total = 0;
  for (const Transfer& transfer : transfers)
    if (axis.empty() || axis == transfer.axis) total += transfer.bytes;
  return total;
}

MemoryPlan memory(const PlanInput& in, int data_size, int feature_size) {
  const int64_t latents = largest_shard(in.latents, feature_size);
  const int64_t padded = data_size * ceil_div(latents, data_size);
  const int64_t owned = padded / data_size;
  const int64_t row = kFloat * row_numbers(in);
  const int64_t slot = slot_rows(in.micro, data_size, feature_size), rows = slot * feature_size;
  const int64_t losses = in.k_aux > 0 ? 2 : 1;  // reconstructions and their gradients
  // Codes: value and index, once by row and once by latent. Without top-k up to d entries a row.
  const int64_t codes = in.topk ? std::min(in.k, latents) : in.width;
  const int64_t aux_codes = std::min(in.k_aux, latents);
  const int64_t candidates = in.topk ? 2 * kFloat * candidates_per_row(in.k, feature_size) : 0;
  MemoryPlan plan;
  plan.weights = row * latents + kFloat * in.width;
  plan.moments = 2 * (row * owned + kFloat * in.width);
  plan.gradients = row * padded;
  plan.average = in.average ? row * owned + kFloat * in.width : 0;
  plan.counters = kCounter * latents;
  plan.buffers = in.sample_bytes * in.width * (rows + slot * in.queue)  // x as read
                 + kFloat * in.width * rows * (1 + 2 * losses)  // x, reconstructions, gradients
                 + kFloat * in.width * slot * losses            // what this rank owns of them
                 + rows * (4 * kFloat * (codes + aux_codes) + candidates);
  return plan;
}

DiskPlan disk(const PlanInput& in) {
  const int64_t weights = kFloat * parameters(in);
  const int64_t average = in.average ? weights : 0;
  DiskPlan plan;
  plan.checkpoint = 3 * weights + average + kCounter * in.latents;
  plan.peak = (in.keep + 1) * plan.checkpoint + weights + average;
  return plan;
}

int64_t parameters(const PlanInput& in) {
  return in.latents * row_numbers(in) + in.width;
}

std::vector<MeshConfig> meshes_of(int ranks, int64_t latents) {
  std::vector<MeshConfig> meshes;
  for (int data = 1; data <= ranks; ++data)
    if (ranks % data == 0 && ranks / data <= latents) meshes.push_back({data, ranks / data});
  return meshes;
}

std::string bytes_text(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, kUnits[unit]);
}

}  // namespace megadict
