#include "train/run_log.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/log.h"
#include "comm/agree.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/activations.h"
#include "model/matryoshka.h"

namespace megadict {

using nlohmann::ordered_json;

namespace {

// SAELens' names of what the held-out densities say (its own come from a window of training).
constexpr std::pair<const char*, const char*> kDensityNames[] = {
    {"metrics/mean_log10_feature_sparsity", "mean_log10_density"},
    {"sparsity/below_1e-5", "density_below_1e-5"},
    {"sparsity/below_1e-6", "density_below_1e-6"},
};

}  // namespace

RunLog::RunLog(const Mesh& mesh, const TrainJob& job) : mesh_(mesh), job_(job) {}

void RunLog::begin(const TrainState& state) {
  begin_s_ = last_s_ = seconds_now();
  begin_tokens_ = last_tokens_ = state.tokens;
  last_comm_s_ = communication_seconds(mesh_);
  last_moved_s_ = background_seconds();
  if (mesh_.world->rank() != 0) return;
  const std::string path = job_.run.dir + "/metrics.jsonl";
  // Lines after the checkpoint belong to steps that are done again, and so does a resampling that
  // came right after it.
  if (file_exists(path))
    filter_json_lines(path, [&](const ordered_json& line) {
      const auto step = line.find("step");
      const int64_t last = line.contains("resampled") ? state.step - 1 : state.step;
      return step == line.end() || !step->is_number() || *step <= last;
    });
  metrics_ = std::make_unique<JsonLines>(path);
  const Dictionary& d = state.dictionary;
  say(fmt::format("{} {} encoder, {} decoder, n {}, d {}, k {}; mesh {} (data x feature)",
                  d.config.activation, d.config.encoder, d.config.decoder, d.n, d.d, d.config.k,
                  mesh_.name()));
  if (const std::vector<Level> levels = levels_of(d.config, d.n); levels.size() > 1)
    for (size_t p = 0; p < levels.size(); ++p)
      say(fmt::format("prefix {}: {} latents, weight {:.4g}", p + 1, levels[p].latents.end,
                      levels[p].weight));
  say(fmt::format("steps {} to {}, {} rows each, lr {:.3g}, dead after {} tokens", state.step,
                  job_.step.total_steps, job_.data_config.batch_size, job_.step.optim.lr,
                  job_.step.dead.window_tokens));
  say(fmt::format("{:>9} {:>11} {:>8} {:>7} {:>7} {:>9} {:>10} {:>7} {:>7}", "step", "tokens",
                  "fvu", "l0", "dead %", "lr", "tokens/s", "data s", "comm s"));
}

void RunLog::step(const TrainState& state, const StepResult& r, const DeadCounts& counts,
                  double data_wait_s) {
  const int64_t dead = counts.dead;
  const double now = seconds_now(), comm = communication_seconds(mesh_);
  const double moved = background_seconds(), moved_s = moved - last_moved_s_;
  const double rate = static_cast<double>(state.tokens - last_tokens_) / (now - last_s_);
  const double data_s = data_wait_s - last_data_wait_s_, comm_s = comm - last_comm_s_;
  last_s_ = now;
  last_tokens_ = state.tokens;
  last_data_wait_s_ = data_wait_s;
  last_comm_s_ = comm;
  last_moved_s_ = moved;
  if (!metrics_) return;
  const bool known = dead >= 0;
  const double dead_pct =
      100.0 * static_cast<double>(dead) / static_cast<double>(state.dictionary.n);
  ordered_json line;
  line["step"] = state.step;
  line["tokens"] = state.tokens;
  line["fvu"] = r.fvu;
  line["l0"] = r.l0;
  line["dead_pct"] = known ? ordered_json(dead_pct) : ordered_json();
  line["lr"] = r.lr;
  line["grad_norm"] = r.grad_norm;
  line["tokens_per_s"] = rate;
  line["data_wait_s"] = data_s;
  line["comm_s"] = comm_s;
  if (job_.step.overlap) line["comm_meanwhile_s"] = moved_s;
  if (activation_named(state.dictionary.config.activation).whole_batch)
    line["threshold"] = state.dictionary.threshold;
  if (const ScreenStats& s = r.screen; s.rows > 0) {  // of rank 0's latents
    const auto rows = static_cast<double>(s.rows);
    line["screen/hits_per_row"] = static_cast<double>(s.hits) / rows;
    line["screen/rescored_per_row"] = static_cast<double>(s.rescored) / rows;
    line["screen/again_pct"] = 100 * static_cast<double>(s.again) / rows;
    line["screen/exact_pct"] = 100 * static_cast<double>(s.exact) / rows;
    line["screen/missed"] = s.missed;
  }
  for (size_t p = 0; p < r.prefix_fvu.size(); ++p)
    line[fmt::format("matryoshka/fvu_{}", p + 1)] = r.prefix_fvu[p];
  line["losses/overall_loss"] = r.loss;
  line["losses/mse_loss"] = r.mse;
  line["losses/auxiliary_reconstruction_loss"] = r.aux_loss;
  line["losses/l1_loss"] = r.l1_loss;
  if (activation_named(state.dictionary.config.activation).has_l0)
    line["losses/l0_loss"] = r.l0_loss;
  if (activation_named(state.dictionary.config.activation).has_gates)
    line["losses/gate_loss"] = r.gate_loss;
  if (r.preact_loss != 0) line["losses/preact_loss"] = r.preact_loss;
  line["metrics/explained_variance"] = 1 - r.fvu;
  line["metrics/l0"] = r.l0;
  line["sparsity/dead_features"] = known ? ordered_json(dead) : ordered_json();
  line["sparsity/tokens_since_fired"] = counts.since_fired;
  line["details/current_learning_rate"] = r.lr;
  line["details/n_training_samples"] = state.tokens;
  metrics_->append(line);
  say(fmt::format("{:>9} {:>11} {:>8.5f} {:>7.2f} {:>7} {:>9.2e} {:>10.0f} {:>7.2f} {:>7.2f}",
                  state.step, state.tokens, r.fvu, r.l0,
                  known ? fmt::format("{:.2f}", dead_pct) : "-", r.lr, rate, data_s, comm_s));
}

void RunLog::resampled(const TrainState& state, const Resampled& done, int64_t rows,
                       double seconds) {
  if (!metrics_) return;
  ordered_json line;
  line["step"] = state.step;
  line["tokens"] = state.tokens;
  line["resampled"] = done.latents;
  line["resample/rows"] = rows;
  line["resample/distinct_rows"] = done.distinct_rows;
  line["resample/seconds"] = seconds;
  metrics_->append(line);
  if (done.latents == 0)
    say(fmt::format("step {}: no dead latents to resample", state.step));
  else
    say(fmt::format("step {}: {} dead latents start anew from {} of {} rows, {:.1f} s", state.step,
                    done.latents, done.distinct_rows, rows, seconds));
}

void RunLog::evaluation(const TrainState& state, const MetricReport& report, bool final) {
  if (!metrics_) return;
  ordered_json out = metrics_json(report);
  out["step"] = state.step;
  out["tokens"] = state.tokens;
  out["n_latents"] = state.dictionary.n;
  out["d"] = state.dictionary.d;
  write_json(job_.run.dir + "/eval.json", out);
  if (final) write_json(job_.run.dir + "/final/eval.json", out);
  ordered_json line;
  line["step"] = state.step;
  line["tokens"] = state.tokens;
  for (const char* name : {"fvu", "explained_variance", "l0", "dead_pct"})
    line[std::string("eval/") + name] = out[name];
  for (const auto& [theirs, ours] : kDensityNames) line[theirs] = out[ours];
  metrics_->append(line);
  say(fmt::format("held-out: fvu {:.5f}, l0 {:.2f}, {:.2f} % of the latents never fire on {} rows",
                  report["fvu"], report["l0"], report["dead_pct"], out["rows"].get<int64_t>()));
}

void RunLog::end(const TrainState& state) {
  const double seconds = seconds_now() - begin_s_;
  say(fmt::format("done: {} tokens in {:.1f} s; weights in {}/final", state.tokens - begin_tokens_,
                  seconds, job_.run.dir));
}

ordered_json communication_by_axis(const Mesh& mesh) {
  ordered_json out;
  for (const Communicator* axis : {mesh.world, mesh.feature.get(), mesh.data.get(), mesh.sweep}) {
    if (axis == nullptr) continue;
    ordered_json& calls = out[axis->axis()] = ordered_json::object();
    for (const auto& [name, count] : axis->counts())
      calls[name] = {{"kind", count.kind}, {"calls", count.calls}, {"bytes", count.bytes}};
  }
  return out;
}

void write_communication(const Mesh& mesh, const std::string& run, const ordered_json& at_start) {
  ordered_json out;
  out["mesh"] = mesh.name();
  out.update(communication_by_axis(mesh));
  out["start"] = at_start;
  agree(*mesh.world, [&] {
    if (mesh.world->rank() == 0) write_json(run + "/communication.json", out);
  });
}

}  // namespace megadict
