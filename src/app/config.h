// Everything a run can be told. Each room owns its part; app lists the fields (fields.h).
#pragma once

#include "comm/mesh.h"
#include "comm/watchdog.h"
#include "data/config.h"
#include "model/config.h"
#include "train/config.h"

namespace megadict {

struct Config {
  DataConfig data;
  ModelConfig model;
  OptimConfig optim;
  DeadConfig dead;
  KernelConfig kernels;
  MeshConfig mesh;
  RunConfig run;
  LogConfig log;
  CheckpointConfig checkpoint;
  EvalConfig eval;
  DebugConfig debug;
};

}  // namespace megadict
