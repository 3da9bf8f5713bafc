#include "app/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "base/range.h"
#include "data/batch_plan.h"
#include "kernels/optimiser.h"
#include "kernels/tensor_kernels.h"
#include "model/activations.h"
#include "model/batch_topk.h"
#include "model/hidden.h"
#include "model/matryoshka.h"
#include "model/topk.h"
#include "train/checkpoint.h"
#include "train/encode_choice.h"
#include "train/resample.h"
#include "train/token_exchange.h"

namespace megadict {

namespace {

constexpr int64_t kFloat = 4, kInt32 = 4, kDouble = 8;  // bytes; every payload but x is fp32
constexpr int64_t kCounter = 8;                         // int64 per latent
constexpr int64_t kProgram = int64_t{224} << 20;        // one rank, however small its dictionary
constexpr int64_t kScalars = 16;                        // words that ride with b_dec's gradient
constexpr int64_t kBlockSums = 256;                     // partial sums of b_dec in the one pass
// A row of a resampling: its id, loss, square, weight and the end of its interval.
constexpr int64_t kRowLoss = 5 * kDouble;
// A listed latent of batchtopk: value and index as listed and as an entry, row and sort key, a
// histogram's copies.
constexpr int64_t kListedEntry = 64;
// A listed latent of jumprelu or gated: as listed, and its place among those kept.
constexpr int64_t kListedEdge = 2 * kFloat + 2 * kCounter;

int64_t largest_shard(int64_t n, int parts) {
  return shard_of(n, parts, 0).size();
}

// Rows each member of a feature row owns of a micro-batch, padded.
int64_t slot_rows(const PlanInput& in, int64_t rows, int data_size, int feature_size) {
  return row_part(std::min(rows, in.micro), data_size, feature_size, 0, 0).slot;
}

// Rows of other owners that a rank receives in one step, over all its micro-batches.
int64_t foreign_rows(const PlanInput& in, int data_size, int feature_size) {
  int64_t rows = 0;
  for (int64_t begin = 0; begin < in.batch; begin += in.micro)
    rows += slot_rows(in, in.batch - begin, data_size, feature_size);
  return rows * (feature_size - 1);
}

// One latent's numbers: encoder and decoder row and the encoder bias.
int64_t row_numbers(const PlanInput& in) {
  return (in.tied ? 0 : in.width) + in.encoder_width() + 1;
}

void add_feature_axis(const PlanInput& in, int data_size, int feature_size,
                      std::vector<Transfer>& out) {
  const int64_t foreign = foreign_rows(in, data_size, feature_size);
  const int64_t vectors = kFloat * in.width * foreign, thresholds = 2 * kFloat * foreign;
  const int64_t partial = in.deterministic ? 2 * vectors : vectors;  // 64-bit sums
  out.push_back({"0", "rows", "feature", in.sample_bytes * in.width * foreign});
  if (in.select == PlanInput::Select::row) {
    const int64_t places = candidate_width(in.k, feature_size);
    out.push_back({"2", "topk candidates", "feature", kFloat * places * foreign});
    out.push_back({"3", "topk thresholds", "feature", thresholds});
  }
  out.push_back({"4", "reconstruction", "feature", in.levels() * partial});
  out.push_back({"5", "residual gradient", "feature", in.levels() * vectors});
  if (in.front)
    out.push_back({"7", "hidden gradient", "feature", kFloat * in.encoder_width() * foreign});
  if (in.k_aux == 0) return;
  const int64_t places = candidate_width(in.k_aux, feature_size);
  out.push_back({"aux", "dead counts", "feature", kCounter * (feature_size - 1)});
  out.push_back({"aux", "topk candidates", "feature", kFloat * places * foreign});
  out.push_back({"aux", "topk thresholds", "feature", thresholds});
  out.push_back({"aux", "auxk reconstruction", "feature", partial});
  out.push_back({"aux", "auxk residual gradient", "feature", vectors});
}

// Of one row over `latents` latents. Without a k about half of them are positive at the start, and
// gates are as many as codes.
int64_t codes_of_row(const PlanInput& in, int64_t latents) {
  if (in.select != PlanInput::Select::positive) return std::min(in.k, latents);
  return latents / 2 * (in.gates ? 2 : 1);
}

void add_all_rows(const PlanInput& in, int data_size, int feature_size,
                  std::vector<Transfer>& out) {
  const int64_t foreign =
      kFloat * ceil_div(largest_shard(in.latents, feature_size), data_size) * (data_size - 1);
  out.push_back({"7", "rows W_enc", "data", foreign * in.encoder_width()});
  out.push_back({"7", "rows W_dec", "data", in.tied ? 0 : foreign * in.width});
  out.push_back({"7", "rows b_enc", "data", foreign});
}

// Received by one of `ranks` that all-reduce.
int64_t all_reduced(int64_t bytes, int64_t ranks) {
  return 2 * bytes * (ranks - 1) / ranks;
}

// Of jumprelu and gated: two sums of each latent to its owner, the new parameters back.
void add_extra(const PlanInput& in, int data_size, int feature_size, std::vector<Transfer>& out) {
  const int64_t ranks = int64_t{data_size} * feature_size, sums = in.preact ? 3 : 2;
  if (in.l0_target) out.push_back({"6", "batch l0", "world", all_reduced(kCounter, ranks)});
  if (in.extra == 0) return;
  const int64_t foreign =
      ceil_div(largest_shard(in.latents, feature_size), data_size) * (data_size - 1);
  if (in.deterministic)
    out.push_back({"7", "largest term", "world", all_reduced(sums * kDouble, ranks)});
  out.push_back({"7", "terms of latents", "data", sums * kDouble * foreign});
  if (in.preact)
    out.push_back({"7", "row sum", "world",
                   all_reduced(kDouble * in.width, ranks) +
                       (in.deterministic ? all_reduced(kDouble, ranks) : 0)});
  out.push_back({"7", "rows of latent parameters", "data", in.extra * kFloat * foreign});
}

// Option B: gradients to the rows' owners, all rows back.
void add_gradients(const PlanInput& in, int data_size, int feature_size,
                   std::vector<Transfer>& out) {
  const int64_t latents = largest_shard(in.latents, feature_size);
  const int64_t foreign = kFloat * ceil_div(latents, data_size) * (data_size - 1);
  const int64_t w_enc = foreign * in.encoder_width(), w_dec = in.tied ? 0 : foreign * in.width;
  out.push_back({"7", "gradients W_enc", "data", w_enc});
  out.push_back({"7", "gradients W_dec", "data", w_dec});
  out.push_back({"7", "gradients b_enc", "data", foreign});
  add_all_rows(in, data_size, feature_size, out);
}

// Option D: rows, residual gradient and codes of all tokens to the latents' owners, updated rows
// back: those with a code, where the optimiser leaves the others alone.
void add_tokens(const PlanInput& in, int data_size, int feature_size, std::vector<Transfer>& out) {
  const int64_t others = data_size - 1;
  int64_t rows = 0, parts = 0;  // of the other data rows
  for (int64_t begin = 0; begin < in.batch; begin += in.micro, ++parts)
    rows += slot_rows(in, in.batch - begin, data_size, feature_size) * feature_size * others;
  const int64_t latents = ceil_div(largest_shard(in.latents, feature_size), data_size);
  const auto share = [&](int64_t per_row) {  // of the codes on a rank's own rows
    return static_cast<double>(in.batch) * static_cast<double>(per_row) / data_size / feature_size;
  };
  const auto lists = [&](int64_t per_row) {  // from the other data rows, headers and entries
    const double codes = share(per_row) / data_size;
    const double headers =
        touched_latents(static_cast<double>(latents), codes / static_cast<double>(parts)) *
        static_cast<double>(parts);
    return static_cast<int64_t>(static_cast<double>(others * 2 * kFloat) * (codes + headers));
  };
  const int64_t codes = codes_of_row(in, in.latents), sizes = 2 * kCounter * others * parts;
  out.push_back({"7", "rows to owners", "data", in.sample_bytes * in.width * rows});
  out.push_back(
      {"7", "residual gradient to owners", "data", in.levels() * kFloat * in.width * rows});
  out.push_back({"7", "list sizes", "data", sizes * (in.levels() + (in.k_aux > 0 ? 1 : 0))});
  out.push_back({"7", "codes to owners", "data", lists(codes), true});
  if (in.k_aux > 0) {
    out.push_back({"aux", "auxk residual gradient to owners", "data", kFloat * in.width * rows});
    out.push_back({"aux", "auxk codes to owners", "data", lists(in.k_aux), true});
  }
  if (!in.lazy) return add_all_rows(in, data_size, feature_size, out);
  const double touched = touched_latents(static_cast<double>(latents), share(codes));
  out.push_back({"7", "row counts", "data", kCounter * others});
  out.push_back({"7", "updated rows", "data",
                 kFloat * (row_numbers(in) + 1) * others * static_cast<int64_t>(touched), true});
}

bool is_screened(const PlanInput& in, int64_t latents) {
  return in.screen == PlanInput::Screen::always ||
         (in.screen == PlanInput::Screen::large_shards && latents >= kFewestScreened);
}

// A row packed for the encode's tiles and its list of hits (kernels/cpu_encode.cpp, screen.cpp).
int64_t encode_bytes(const PlanInput& in, int64_t latents) {
  const bool screened = is_screened(in, latents);
  const int64_t hits = 2 * kFloat * std::max<int64_t>(512, 6 * std::min(in.listed(), latents));
  return hits + (screened ? screen_product(in.screen_kind).padded(in.width) : kFloat * in.width);
}

bool updates_in_one_pass(const PlanInput& in, int data_size) {
  return !in.clips && (data_size == 1 || in.tokens);
}

// Of the batch, this data row's, with what shards of it are padded by.
int64_t batch_rows_here(const PlanInput& in, int data_size, int feature_size) {
  int64_t rows = 0;
  for (int64_t begin = 0; begin < in.batch; begin += in.micro)
    rows += slot_rows(in, in.batch - begin, data_size, feature_size) * feature_size;
  return rows;
}

// What the one pass keeps of the batch's other micro-batches and, where tokens are exchanged, of
// the other data rows: x - b_dec, gradients and codes.
int64_t kept_bytes(const PlanInput& in, int data_size, int feature_size) {
  if (!updates_in_one_pass(in, data_size)) return 0;
  const int64_t rows = batch_rows_here(in, data_size, feature_size) * data_size -
                       slot_rows(in, in.batch, data_size, feature_size) * feature_size;
  const int64_t vectors = 1 + in.levels() + (in.k_aux > 0 ? 1 : 0);
  // Of gates only the terms are kept.
  const int64_t codes = codes_of_row(in, in.latents) / (in.gates ? 2 : 1) / feature_size;
  return rows * (vectors * kFloat * in.width + 2 * kFloat * codes);
}

// Terms of gates and of magnitudes until the step's end, an id and two numbers each. Thresholds
// have them near the edge alone.
int64_t gate_bytes(const PlanInput& in, int64_t latents, int data_size, int feature_size) {
  if (!in.gates) return 0;
  return batch_rows_here(in, data_size, feature_size) * codes_of_row(in, latents) * 3 * kFloat;
}

// What more micro-batches than one hold while their exchanges overlap: the next one's rows, and of
// those before it what kept_bytes() does not count.
int64_t overlap_bytes(const PlanInput& in, int64_t rows, int data_size, int feature_size) {
  if (!in.overlap || in.micro >= in.batch) return 0;
  const int64_t raw = in.sample_bytes * in.width, vector = kFloat * in.width;
  int64_t of_row = raw + in.levels() * vector;
  if (data_size > 1) of_row += 4 * raw + in.levels() * vector;
  if (!updates_in_one_pass(in, data_size))
    of_row += 3 * ((1 + in.levels()) * vector +
                   2 * kFloat * (codes_of_row(in, in.latents) / feature_size));
  return of_row * rows;
}

// Of a micro-batch: what the layers in front make of all rows, on the way and gradient; of the own
// rows what each layer keeps for its gradient.
int64_t hidden_bytes(const PlanInput& in, int64_t rows, int64_t slot) {
  if (in.hidden == 0) return 0;
  const int64_t widest = std::max(in.encoder_width(), in.width);
  const int64_t layers = std::max<int64_t>(1, in.hidden / (widest * in.width));
  return kFloat * widest * ((in.front ? 4 : 0) * rows + 5 * (1 + layers) * slot);
}

// Bytes of one micro-batch in flight, at its fullest, and of the queue.
int64_t buffer_bytes(const PlanInput& in, int64_t latents, int data_size, int feature_size) {
  const int64_t slot = slot_rows(in, in.batch, data_size, feature_size);
  const int64_t rows = slot * feature_size, vector = kFloat * in.width;
  const int64_t queue = in.queue * slot * (in.sample_bytes * in.width + kCounter);
  // x - b_dec and x, or partial reconstructions and, of several shards, as many on their way.
  const int64_t exact = in.deterministic ? (feature_size > 1 ? 2 : 1) : 0;
  // Of a matryoshka dictionary those of each level, and its gradient.
  const int64_t whole = (3 + exact + 2 * (in.levels() - 1)) * vector * rows;
  // Residual and gradient of the owned rows, AuxK's too; their squares in double.
  const int64_t own =
      (((in.k_aux > 0 ? 3 : 1) + in.levels()) * vector + 2 * kDouble * in.width) * slot;
  // Value and index of a code three times: selected, kept, by latent. Candidates go and come.
  using enum PlanInput::Select;
  const int64_t codes = codes_of_row(in, latents);
  const int64_t aux_codes = std::min(in.k_aux, latents);
  const int64_t work =
      in.tensors ? tensor_work_bytes(rows, in.width, latents) : rows * encode_bytes(in, latents);
  const int64_t places =
      in.select == row && feature_size > 1 ? candidate_width(in.k, feature_size) : 0;
  const int64_t listed = in.select == batch ? kListedEntry * std::min(in.listed(), latents) : 0;
  return queue + whole + own + work + kept_bytes(in, data_size, feature_size) +
         overlap_bytes(in, rows, data_size, feature_size) +
         rows * (6 * kFloat * (codes + aux_codes) + 2 * kFloat * places + listed) +
         (in.extra > 0 ? kListedEdge * rows * codes : 0) +
         gate_bytes(in, latents, data_size, feature_size) + hidden_bytes(in, rows, slot);
}

// A rank keeps its part of a window until the last batch of it, and reads the next one meanwhile.
int64_t window_bytes(const PlanInput& in, int64_t ranks) {
  const int64_t two = 2 * in.shuffle_buffer, rows = in.rows > 0 ? std::min(in.rows, two) : two;
  return ceil_div(rows, ranks) * in.sample_bytes * in.width;
}

// Histograms of the selection over the batch, each with a count that rides along. A batch in which
// some row holds more codes of a shard than it lists is selected from twice: nearly every one where
// there are few shards, none where whole shards are listed. Ties at the threshold add more.
void add_batch_selection(const PlanInput& in, int64_t latents, int64_t ranks,
                         std::vector<Transfer>& out) {
  if (in.select != PlanInput::Select::batch) return;
  int64_t words = 0;
  for (int left = 32; left > 0; left -= kRadixBits)
    words += (int64_t{1} << std::min(left, kRadixBits)) + 1;
  const int64_t bytes = 2 * kCounter * words * (ranks - 1) / ranks;
  out.push_back({"2", "batchtopk values", "world", bytes});
  if (in.listed() < latents) out.push_back({"2", "batchtopk values again", "world", bytes});
}

}  // namespace

int64_t PlanInput::listed() const {
  return select == Select::batch ? list_width(k) : k;
}

namespace {

// Checkpoints that checkpoint.keep_ratio keeps, at most: by time the first may come at any step.
int64_t milestones(const Config& config) {
  const CheckpointConfig& checkpoint = config.checkpoint;
  const int64_t steps = config.data.tokens / config.data.batch_size;
  if (checkpoint.keep_ratio <= 1 || steps < 1) return 0;
  const int64_t first = checkpoint.every_minutes > 0 ? 1 : checkpoint.every_steps;
  if (first < 1 || first > steps) return 0;
  return 1 + milestone_of(steps, checkpoint.keep_ratio) -
         milestone_of(first, checkpoint.keep_ratio);
}

}  // namespace

PlanInput plan_input(const Config& config, int64_t width, int64_t sample_bytes, int64_t rows) {
  PlanInput in;
  in.width = width;
  in.latents = config.model.n_latents;
  in.k = config.model.k;
  in.batch = config.data.batch_size;
  in.micro = config.data.micro_batch_size;
  in.k_aux = config.dead.auxk_alpha > 0 ? config.dead.k_aux : 0;
  if (resample_steps(config.dead.resample_steps).first() > 0)
    in.resample_rows =
        rows > 0 ? std::min(rows, config.dead.resample_rows) : config.dead.resample_rows;
  in.sample_bytes = sample_bytes;
  in.queue = config.data.queue;
  in.shuffle_buffer = config.data.shuffle_buffer;
  in.rows = rows;
  in.keep = config.checkpoint.keep + milestones(config);
  const ActivationFn& activation = activation_named(config.model.activation);
  in.select = activation.whole_batch ? PlanInput::Select::batch
              : activation.has_k     ? PlanInput::Select::row
                                     : PlanInput::Select::positive;
  in.prefixes = static_cast<int64_t>(levels_of(config.model, config.model.n_latents).size());
  in.extra = static_cast<int64_t>(activation.parameters.size());
  in.gates = activation.has_gates;
  in.preact = activation.has_l0 && config.dead.preact_coefficient > 0;
  in.l0_target = activation.has_l0 && config.model.l0_coefficient > 0 && config.model.l0_target > 0;
  in.tied = config.model.decoder == "tied";
  in.front = has_front(config.model);
  in.seen = encoder_width(config.model, width);
  for (const HiddenParameter& parameter : hidden_parameters(config.model, width))
    in.hidden += c10::multiply_integers(parameter.shape);
  in.average = config.optim.ema > 0;
  const Optimiser& optimiser = optimiser_named(config.optim.name);
  in.moments = (optimiser.first_moment ? 1 : 0) + (optimiser.second_moment ? 1 : 0);
  in.lazy = optimiser.lazy;
  in.clips = config.optim.clip_norm > 0;
  in.tokens = config.mesh.exchange != "gradients";
  in.deterministic = config.run.deterministic;
  in.overlap = config.mesh.overlap;
  in.tensors = config.kernels.set == "tensor" || config.run.device != "cpu";
  if (const ScreenProduct* product = screen_named(config.kernels.encode)) {
    in.screen = PlanInput::Screen::always;
    in.screen_kind = product->kind;
  } else if (config.kernels.encode == "auto" && activation.has_k && !in.tensors) {
    in.screen = PlanInput::Screen::large_shards;
  }
  return in;
}

std::vector<Transfer> transfers(const PlanInput& in, int data_size, int feature_size) {
  std::vector<Transfer> out;
  add_feature_axis(in, data_size, feature_size, out);
  const int64_t ranks = int64_t{data_size} * feature_size, others = data_size - 1;
  const auto over_world = [&](int64_t bytes) { return all_reduced(bytes, ranks); };
  const int64_t latents = largest_shard(in.latents, feature_size);
  add_batch_selection(in, latents, ranks, out);
  if (in.k_aux > 0)
    out.push_back({"aux", "auxk sums", "world",
                   over_world(2 * kDouble) + (in.deterministic ? over_world(kDouble) : 0)});
  if (in.deterministic) {
    const int64_t decodes = ceil_div(in.batch, in.micro) * (in.levels() + (in.k_aux > 0 ? 1 : 0));
    out.push_back({"4", "largest code", "world", decodes * over_world(2 * kDouble)});
    out.push_back({"8", "largest gradient", "world", over_world(6 * kDouble)});
    out.push_back({"8", "codes of the batch", "world", over_world(kCounter)});
    out.push_back({"8", "b_dec gradient", "world", over_world(2 * kDouble * in.width)});
  }
  (in.tokens && !in.clips ? add_tokens : add_gradients)(in, data_size, feature_size, out);
  add_extra(in, data_size, feature_size, out);
  if (in.hidden > 0)
    out.push_back({"8", "gradients of hidden layers", "world", over_world(kFloat * in.hidden)});
  out.push_back({"8", "step sums", "world",
                 over_world(kFloat * (in.width + kScalars + 2 * (in.prefixes - 1)))});
  out.push_back({"9", "fired latents", "data", others * ceil_div(latents, 8)});
  return out;
}

std::vector<Transfer> resample_transfers(const PlanInput& in, int data_size, int feature_size) {
  if (in.resample_rows == 0) return {};
  PlanInput of_rows = in;  // an encode and an exact decode of each row
  of_rows.batch = in.resample_rows;
  of_rows.sample_bytes = kFloat;
  of_rows.deterministic = true;
  of_rows.k_aux = 0;
  std::vector<Transfer> out;
  add_feature_axis(of_rows, data_size, feature_size, out);
  std::erase_if(out, [](const Transfer& one) {
    const std::string name = one.name;
    return name == "residual gradient" || name == "hidden gradient";
  });
  const int64_t ranks = int64_t{data_size} * feature_size;
  const auto over_world = [&](int64_t bytes) { return all_reduced(bytes, ranks); };
  const int64_t blocks = ceil_div(in.resample_rows, in.micro);
  out.push_back({"4", "largest code", "world", blocks * over_world(2 * kDouble)});
  out.push_back({"-", "stop request", "world", blocks * over_world(kInt32)});
  out.push_back({"-", "row weights", "world", over_world(kDouble * in.resample_rows)});
  out.push_back({"-", "who is dead", "feature",
                 (feature_size - 1) * largest_shard(in.latents, feature_size)});
  return out;
}

const char* cheaper_exchange(const PlanInput& in, int data_size, int feature_size) {
  if (in.clips || in.hidden > 0) return "gradients";
  const auto moved = [&](bool tokens) {
    PlanInput with = in;
    with.tokens = tokens;
    return total_bytes(transfers(with, data_size, feature_size), "data");
  };
  return moved(true) <= moved(false) ? "tokens" : "gradients";
}

PlanInput on_mesh(PlanInput in, const MeshConfig& mesh) {
  if (in.exchange_by_rule && !in.deterministic)
    in.tokens = std::string_view(cheaper_exchange(in, mesh.data, mesh.feature)) == "tokens";
  return in;
}

double touched_latents(double latents, double codes) {
  return latents * (1 - std::exp(-codes / latents));
}

int64_t total_bytes(const std::vector<Transfer>& transfers, const std::string& axis) {
  int64_t total = 0;
  for (const Transfer& transfer : transfers)
    if (axis.empty() || axis == transfer.axis) total += transfer.bytes;
  return total;
}

MemoryPlan memory(const PlanInput& in, int data_size, int feature_size) {
  const int64_t latents = largest_shard(in.latents, feature_size);
  const int64_t owned = ceil_div(latents, data_size), padded = data_size * owned;
  const int64_t row = kFloat * (row_numbers(in) + in.extra), b_dec = kFloat * in.width;
  MemoryPlan plan;
  const int64_t hidden = kFloat * in.hidden;
  plan.weights = row * padded + b_dec + hidden;
  plan.moments = in.moments * (row * owned + b_dec + hidden) + (in.lazy ? kCounter * owned : 0);
  const bool one_pass = updates_in_one_pass(in, data_size);
  plan.gradients = kDouble * in.width * (one_pass ? 1 + kBlockSums : 1);
  plan.gradients += 2 * hidden;  // of the step, and of one micro-batch
  if (!one_pass) plan.gradients += row * padded + (data_size > 1 ? row * owned : 0);
  plan.average = in.average ? row * owned + b_dec + hidden : 0;
  plan.counters = kCounter * latents;
  if (is_screened(in, latents))
    plan.screen = latents * (screen_product(in.screen_kind).padded(in.encoder_width()) +
                             (3 + ScreenRows::kMostApart) * kFloat);
  plan.buffers = buffer_bytes(in, latents, data_size, feature_size);
  // Updated rows on their way to the other data rows.
  if (one_pass && data_size > 1)
    plan.buffers += in.lazy ? 2 * std::min(kRowPieceBytes, row * owned) : 0;
  plan.window = window_bytes(in, int64_t{data_size} * feature_size);
  plan.resampling = kRowLoss * in.resample_rows;
  plan.program = kProgram;
  plan.bytes_per_dead_latent = in.k_aux > 0 ? (one_pass ? 1 : 2) * row : 0;
  return plan;
}

int feature_axis_that_fits(const PlanInput& in, int64_t bytes) {
  for (int ranks = 1; ranks <= 4096 && ranks <= in.latents; ranks *= 2)
    if (memory(in, 1, ranks).peak() <= bytes) return ranks;
  return 0;
}

DiskPlan disk(const PlanInput& in) {
  const int64_t weights = kFloat * parameters(in);
  const int64_t average = in.average ? weights : 0;
  DiskPlan plan;
  plan.checkpoint =
      (1 + in.moments) * weights + average + (in.lazy ? 2 : 1) * kCounter * in.latents;
  plan.peak = (in.keep + 2) * plan.checkpoint;  // one under construction; final/ is as large
  return plan;
}

int64_t parameters(const PlanInput& in) {
  return in.latents * (row_numbers(in) + in.extra) + in.width + in.hidden;
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
