// megadict bench step: whole optimiser steps without a loader, by stage.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstring>

#include "app/bench.h"
#include "base/philox.h"
#include "model/initialise.h"
#include "train/step.h"

namespace megadict {

namespace {

constexpr int64_t kDirections = 4096;

at::Tensor unit_rows(at::Tensor rows) {
  return rows.div_(rows.norm(2, {1}, true));
}

// Rows that are sums of a few of 4096 directions, and noise; the same on every rank.
at::Tensor make_rows(const StepBench& options) {
  at::manual_seed(1);
  const at::Tensor truth = unit_rows(at::randn({kDirections, options.width}));
  const at::Tensor active = at::randint(kDirections, {options.rows, options.k}, at::kLong);
  at::Tensor x = at::randn({options.rows, options.width}) *
                 (0.3 / std::sqrt(static_cast<double>(options.width)));
  for (int64_t i = 0; i < options.k; ++i)
    x += truth.index_select(0, active.select(1, i)) * at::rand({options.rows, 1});
  return x;
}

// A dictionary as at the start of a run: random unit rows, the encoder a multiple of them.
TrainState make_state(const Mesh& mesh, const StepBench& options) {
  ModelConfig model;
  model.n_latents = options.latents;
  model.k = options.k;
  const Range own = shard_of(options.latents, mesh.feature_size(), mesh.feature_index);
  const int64_t padded = ceil_div(own.size(), mesh.data_size()) * mesh.data_size();
  TrainState state;
  state.dictionary = empty_dictionary(model, options.latents, options.width, own, padded, at::kCPU);
  at::manual_seed(static_cast<uint64_t>(2 + mesh.feature_index));
  at::Tensor w_dec = state.dictionary.w_dec_ld;
  unit_rows(at::randn_out(w_dec, w_dec.sizes()));
  state.dictionary.w_enc_ld.copy_(state.dictionary.w_dec_ld).mul_(0.3);
  state.var_total = 1;
  state.tokens = 1;
  reset_optimiser(mesh, optimiser_named(options.optimiser), false, state);
  return state;
}

MicroBatch micro_batch(const Mesh& mesh, const StepBench& options, const at::Tensor& x,
                       int64_t index) {
  const int64_t size = options.micro > 0 ? options.micro : options.rows, begin = index * size;
  MicroBatch out;
  out.micro = index;
  out.batch_rows = options.rows;
  out.rows = std::min(size, options.rows - begin);
  out.last_of_step = begin + out.rows == options.rows;
  out.part = row_part(out.rows, mesh.data_size(), mesh.feature_size(), mesh.data_index,
                      mesh.feature_index);
  const int64_t width = options.width, owned = out.part.owned.size();
  out.data = Bytes(static_cast<size_t>(out.part.slot * width) * sizeof(float));
  const int64_t first = begin + out.part.row_range.begin + out.part.owned.begin;
  for (int64_t i = 0; i < owned; ++i) out.row_ids.push_back(first + i);
  if (owned > 0)
    std::memcpy(out.data.data(), x.const_data_ptr<float>() + first * width,
                static_cast<size_t>(owned * width) * sizeof(float));
  return out;
}

struct Stage {
  const char* name;
  double StageSeconds::*seconds;
};
constexpr Stage kStages[] = {{"rows", &StageSeconds::rows},     {"encode", &StageSeconds::encode},
                             {"decode", &StageSeconds::decode}, {"auxk", &StageSeconds::auxk},
                             {"update", &StageSeconds::update}, {"step", &StageSeconds::step}};

// Seconds of steps of one way, each.
struct Samples {
  std::array<std::vector<double>, std::size(kStages)> stages;
  std::vector<double> calls, moved;  // in collectives; meanwhile

  void add(const StageSeconds& step, double in_calls, double meanwhile) {
    for (size_t s = 0; s < std::size(kStages); ++s) stages[s].push_back(step.*kStages[s].seconds);
    calls.push_back(in_calls);
    moved.push_back(meanwhile);
  }

  void report(int64_t rows, const std::string& prefix, BenchReport& out) const {
    for (size_t s = 0; s < std::size(kStages); ++s)
      out.lines.push_back(
          line_of(prefix + kStages[s].name, stages[s], static_cast<double>(rows), "rows/s"));
    out.lines.push_back(line_of(prefix + "in collectives", calls, 0, ""));
    if (!prefix.empty()) out.lines.push_back(line_of("moved meanwhile", moved, 0, ""));
  }
};

}  // namespace

BenchReport bench_step(Communicator& world, const StepBench& options) {
  const Mesh mesh = make_mesh(world, resolve_mesh(options.mesh, world.size()));
  const at::Tensor x = make_rows(options);
  TrainState state = make_state(mesh, options);
  StepConfig config;
  config.optim.name = options.optimiser;
  config.optim.lr = 1e-4;
  config.optim.warmup_steps = 0;
  config.total_steps = 2 * options.repeats + 2;
  config.exchange = options.exchange;
  config.dead.auxk_alpha = options.k_aux > 0 ? 1.0 / 32 : 0;
  config.dead.k_aux = options.k_aux;
  config.dead.window_tokens = 1;
  StepWorkspace workspace = make_workspace(state, options.encode);
  // By turns, so that both meet the same machine.
  const int ways = options.mesh.overlap ? 2 : 1;
  std::array<Samples, 2> samples;
  for (int i = 0; i < options.repeats * ways + 2; ++i) {
    config.overlap = i % ways == 1;
    // The first latents of a shard are dead, the others fire.
    state.tokens_since_fired_l.zero_();
    const Range dead{0, std::clamp<int64_t>(options.dead - state.dictionary.latents.begin, 0,
                                            state.dictionary.latents.size())};
    state.tokens_since_fired_l.narrow(0, 0, dead.size()).fill_(options.rows);
    int64_t micro = 0;
    const double calls_s = communication_seconds(mesh), moved_s = background_seconds();
    const StepResult result = train_step(
        mesh, config, [&] { return micro_batch(mesh, options, x, micro++); }, false, state,
        workspace);
    if (i < 2) continue;  // memory, the screen's threshold
    samples[config.overlap].add(result.seconds, communication_seconds(mesh) - calls_s,
                                background_seconds() - moved_s);
  }
  BenchReport report;
  report.title = fmt::format(
      "step: mesh {} ({}), {} rows ({} at once{}) of width {}, {} latents, k {}, {}, encode {}, "
      "kernels {} {}, {} dead",
      mesh.name(), options.exchange, options.rows, options.micro > 0 ? options.micro : options.rows,
      options.mesh.overlap ? ", overlapped by turns" : "", options.width, options.latents,
      options.k, options.optimiser, options.encode, kernels_for(x).name, name_of(isa_in_use()),
      options.dead);
  samples[0].report(options.rows, "", report);
  if (ways == 2) samples[1].report(options.rows, "overlapped ", report);
  return report;
}

}  // namespace megadict
