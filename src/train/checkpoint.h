// Checkpoints: written to a temporary folder, fsynced, renamed; every rank
// writes the rows it owns, every mesh can read them (layout: model/saved.h). Besides the weights:
// moment1.* and moment2.* (what the optimiser keeps), last_step, ema.*, tokens_since_fired.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "train/config.h"
#include "train/state.h"

namespace megadict {

// What state.json says of the data set; compared on resume.
struct DataIdentity {
  std::string fingerprint;
  int64_t rows = 0;   // that take part
  int64_t width = 0;  // in state.json as "d"
  std::string dtype, model, hook, tokenizer;
  int64_t layer = -1;
};

// The fixed settings of the run that resumes, as its config.json has them.
struct RunIdentity {
  std::string config_path;
  uint64_t seed = 0;
  ModelConfig model;
};

// Writes RUN/checkpoints/step_000001000 (or `folder` where given) and RUN/latest; before that goes
// what a run that went back to an earlier step has left of later ones. Collective over world.
// Refuses (exit 4, agreed) when a row was skipped because of a non-finite gradient.
void write_checkpoint(const Mesh& mesh, const std::string& run, const std::string& folder,
                      const DataIdentity& data, uint64_t seed, const TrainState& state);

// Removes what a crash left half written below `run`, so that it takes no disk. Rank 0 only.
void remove_unfinished(const std::string& run);

// After a checkpoint: removes all but the newest `keep` and, with a keep_ratio, the first of each
// milestone_of(); and what a crash left unfinished. Rank 0 only.
void prune_checkpoints(const std::string& run, const CheckpointConfig& config);

// The largest power of `ratio` (> 1) that is not above `step` (>= 1): its exponent.
int64_t milestone_of(int64_t step, double ratio);

// Fills everything of `state` for this rank's place in the mesh. Exit 2 (agreed) where the data
// differ from `data`, exit 3 (agreed) where the checkpoint is not of `run`; with the difference.
void read_checkpoint(const Mesh& mesh, const std::string& folder, const RunIdentity& run,
                     const DataIdentity& data, const OptimConfig& optim, at::Device device,
                     TrainState& state);

}  // namespace megadict
