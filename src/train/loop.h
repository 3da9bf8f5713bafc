// A whole training run on a mesh: start or resume, steps, log, checkpoints, evaluation, end.
#pragma once

#include <string>

#include "base/error.h"
#include "comm/mesh.h"
#include "data/batch_plan.h"
#include "data/config.h"
#include "data/shard_index.h"
#include "data/shared_stream.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/step.h"

namespace megadict {

// Everything resolved: no value means "auto" any more.
struct TrainJob {
  DataConfig data_config;
  ModelConfig model;  // init_from: a folder of weights
  StepConfig step;
  KernelConfig kernels;
  bool encode_was_auto = false;  // kernels.encode is what `auto` picked before a resume
  RunConfig run;
  LogConfig log;
  CheckpointConfig checkpoint;
  EvalConfig eval;
  at::Device device = at::Device(at::kCPU);
  const ShardIndex* data = nullptr;
  const BatchPlan* plan = nullptr;
  const ShardIndex* eval_data = nullptr;  // nullptr = none
  DataIdentity identity;
  std::string resume_from;    // a checkpoint folder; "" = a fresh start
  std::string resume_config;  // config.json of its run
  // A row that one rank cannot read ends the run on all (exit 3, agreed), at the price of a small
  // all-reduce a micro-batch: for who goes on afterwards. Not where messages overlap.
  bool agree_on_rows = false;
  SharedStream* rows = nullptr;  // nullptr = this run reads by itself
};

// From `state` (start_state() of train/start.h) to the end. Collective over the mesh. Returns done,
// requeue (75) or terminated (143); throws exit 4 (agreed) when values stop being finite. The run
// folder exists and is this run's own.
ExitCode run_training(const Mesh& mesh, const TrainJob& job, TrainState state);

}  // namespace megadict
