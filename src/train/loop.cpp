#include "train/loop.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/progress.h"
#include "comm/agree.h"
#include "comm/watchdog.h"
#include "eval/evaluate.h"
#include "io/json_file.h"
#include "kernels/memory.h"
#include "model/initialise.h"
#include "model/saved.h"
#include "train/dead.h"
#include "train/resample.h"
#include "train/run_log.h"
#include "train/start.h"
#include "train/threshold.h"

namespace megadict {

namespace {

struct Run {
  const Mesh& mesh;
  const TrainJob& job;
  TrainState state;
  RunLog log;
  double last_checkpoint_s = 0;  // by rank 0's clock
  int64_t steps_done = 0;        // since this start
};

void save(Run& run, const std::string& folder) {
  write_checkpoint(run.mesh, run.job.run.dir, folder, run.job.identity, run.job.run.seed,
                   run.state);
  if (folder.empty())
    agree(*run.mesh.world, [&] {
      if (run.mesh.world->rank() == 0) prune_checkpoints(run.job.run.dir, run.job.checkpoint);
    });
  release_free_memory();
  if (folder.empty()) say(fmt::format("checkpoint at step {}", run.state.step));
}

// From the sample that the run began with.
double threshold_now(const Run& run) {
  return calibrated_threshold(run.mesh, *run.job.data, run.job.plan->sample(kSampleRows),
                              run.job.data_config.batch_size, run.state);
}

// The threshold an evaluation on the way judges with; a checkpoint at the same step has it, too.
void settle_threshold(Run& run) {
  if (run.job.eval_data) run.state.judged_threshold = threshold_now(run);
}

void evaluate_now(Run& run, bool final) {
  if (!run.job.eval_data) return;
  Dictionary judged = run.state.dictionary;
  if (!final) judged.threshold = run.state.judged_threshold;
  const MetricReport report =
      evaluate(run.mesh, judged, run.state.normalization, *run.job.eval_data,
               {run.job.eval.tokens, run.job.data_config.batch_size});
  release_free_memory();
  agree(*run.mesh.world, [&] { run.log.evaluation(run.state, report, final); });
}

// The finished dictionary's; a checkpoint on the way has the running average, unless it comes right
// after an evaluation.
void calibrate(Run& run) {
  double& threshold = run.state.dictionary.threshold;
  const double running = std::exchange(threshold, threshold_now(run));
  if (threshold != running)
    say(fmt::format("threshold {:.5g} on training rows (running average {:.5g})", threshold,
                    running));
  release_free_memory();
}

// What the step's own sums and rank 0's clock ask for; the same on every rank.
bool checkpoint_due(const Run& run, const StepResult& result) {
  const CheckpointConfig& config = run.job.checkpoint;
  if (config.every_steps > 0 && run.state.step % config.every_steps == 0) return true;
  return config.every_minutes > 0 &&
         result.clock_s - run.last_checkpoint_s >= 60 * config.every_minutes;
}

[[noreturn]] void diverged(const Run& run) {
  const std::string kept = newest_checkpoint(run.job.run.dir);
  throw Error(ExitCode::diverged,
              fmt::format("step {}: values are not finite on mesh {}; no checkpoint is written, {}",
                          run.state.step, run.mesh.name(),
                          kept.empty() ? "none exists" : "'" + kept + "' is kept"),
              "lower optim.lr, or set data.max_norm_multiple; rows, where it began in one, are "
              "named above",
              true);
}

// Saves and says how the program has to end.
ExitCode stop(Run& run, StopRequest request) {
  save(run, "");
  ignore_stop_signals();
  say(fmt::format("stopped at step {} of {} after {}", run.state.step, run.job.step.total_steps,
                  request == StopRequest::terminate ? "TERM or INT" : "USR1"));
  return code_of(request);
}

// After so many steps, before the next: a checkpoint of this step has the latents as they were.
StopRequest resample(Run& run, const ResampleSteps& when, Screen* screen) {
  const TrainJob& job = run.job;
  if (!when.due(run.state.step) || run.state.resampled_at == run.state.step)
    return StopRequest::none;
  const double begin_s = seconds_now();
  const std::vector<int64_t> rows =
      rows_to_come(*job.plan, run.state.step, job.step.dead.resample_rows);
  const Resampled done = resample_dead(run.mesh,
                                       {.data = *job.data,
                                        .rows = rows,
                                        .block_rows = job.data_config.micro_batch_size,
                                        .window_tokens = job.step.dead.window_tokens,
                                        .scale = job.step.dead.resample_scale,
                                        .seed = job.run.seed,
                                        .threshold = threshold_now(run)},
                                       screen, run.state);
  release_free_memory();
  if (done.stop == StopRequest::none)
    agree(*run.mesh.world, [&] {
      run.log.resampled(run.state, done, static_cast<int64_t>(rows.size()),
                        seconds_now() - begin_s);
    });
  return done.stop;
}

// The window is wider from here on, up to a limit.
void report_misses(const Run& run, const ScreenStats& screen) {
  warn(fmt::format("step {}: {} missed {} of the best latents of {} compared rows{}",
                   run.state.step, run.job.kernels.encode, screen.missed, screen.checked,
                   screen.given_up ? "; from here on this rank encodes in fp32" : ""));
}

// Where the rows come from: a stream of this run's own, or one shared with others.
struct RowSource {
  MicroBatchSource next;
  std::function<double()> wait_seconds;
};

template <class Stream>
RowSource source_of(Stream& stream) {
  return {[&stream] { return stream.next(); }, [&stream] { return stream.wait_seconds(); }};
}

MicroBatch next_rows(const Run& run, const RowSource& stream) {
  if (!run.job.agree_on_rows || run.job.step.overlap) return stream.next();
  MicroBatch next;
  agree(*run.mesh.world, [&] { next = stream.next(); });
  return next;
}

ExitCode steps(Run& run, const RowSource& stream) {
  const TrainJob& job = run.job;
  release_free_memory();
  StepWorkspace workspace = make_workspace(run.state, job.kernels.encode);
  Progress shown("train", job.step.total_steps, "steps", run.state.step);
  const ResampleSteps when = resample_steps(job.step.dead.resample_steps);
  while (run.state.step < job.step.total_steps) {
    Screen* screen = workspace.screen ? &*workspace.screen : nullptr;
    const StopRequest asked = resample(run, when, screen);
    if (asked != StopRequest::none) return stop(run, asked);
    const int64_t next = run.state.step + 1;
    set_watchdog_step(run.state.step);
    const bool logged = next % job.log.every_steps == 0 || next == job.step.total_steps;
    const StepResult result = train_step(
        run.mesh, job.step, [&] { return next_rows(run, stream); }, logged, run.state, workspace);
    if (!result.finite) diverged(run);
    if (result.screen.missed > 0) report_misses(run, result.screen);
    if (run.steps_done++ == 0) run.last_checkpoint_s = result.clock_s;
    if (logged) {
      const DeadCounts dead = count_dead(run.mesh, run.state, job.step.dead.window_tokens);
      agree(*run.mesh.world, [&] { run.log.step(run.state, result, dead, stream.wait_seconds()); });
    }
    if (run.state.step == job.step.total_steps) break;
    shown.at(run.state.step);
    // Before an evaluation, which may outlast the time that a signal leaves.
    if (result.stop != StopRequest::none) return stop(run, result.stop);
    // And so is what there is to save.
    const bool judged = job.eval.every_steps > 0 && run.state.step % job.eval.every_steps == 0;
    if (judged) settle_threshold(run);
    if (checkpoint_due(run, result)) {
      save(run, "");
      run.last_checkpoint_s = result.clock_s;
    }
    if (judged) evaluate_now(run, false);
  }
  return ExitCode::done;
}

ExitCode train(Run& run) {
  const TrainJob& job = run.job;
  const Mesh& mesh = run.mesh;
  if (job.rows != nullptr) {
    job.rows->start(run.state.step);
    return steps(run, source_of(*job.rows));
  }
  BatchStream stream(*job.data, *job.plan, mesh.data_size(), mesh.feature_size(), mesh.data_index,
                     mesh.feature_index, run.state.step, job.data_config.queue);
  return steps(run, source_of(stream));
}

}  // namespace

ExitCode run_training(const Mesh& mesh, const TrainJob& job, TrainState state) {
  const c10::NoGradGuard no_grad;
  Run run{mesh, job, std::move(state), RunLog(mesh, job), 0, 0};
  agree(*mesh.world, [&] {
    if (mesh.world->rank() == 0) remove_unfinished(job.run.dir);
    run.log.begin(run.state);
  });
  const bool trained = run.state.step < job.step.total_steps;
  if (trained) {
    const ExitCode code = train(run);
    if (code != ExitCode::done) return code;
  }
  if (job.rows != nullptr) job.rows->finish();  // others may need rows while this one is judged
  calibrate(run);
  if (trained) save(run, "");
  save(run, job.run.dir + "/final");
  evaluate_now(run, true);
  run.log.end(run.state);
  return ExitCode::done;
}

}  // namespace megadict
