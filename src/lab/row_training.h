// A dictionary trained on rows of a data set within one cell: the trainer's own start and steps on
// a mesh of one rank, judged on the held-out rows. Nothing is saved.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "model/config.h"
#include "train/config.h"

namespace megadict {

struct RowTraining {
  std::string path;  // shards, with held-out ones in PATH/eval
  ModelConfig model;
  OptimConfig optim;
  double auxk_alpha = 0;
  std::string normalize = "sqrt_d";
  int64_t batch = 4096, steps = 5000;
  uint64_t seed = 0;
};

nlohmann::ordered_json settings_json(const RowTraining& training);

// fvu; mse, of rows as they were normalised and as a mean over entries; l0; dead, the share of
// latents without a code in the last 1,000 steps (or half of fewer). Exit 2 for k above the
// latents, 3 for data that cannot be read or have no PATH/eval, 4 with the step where values stop
// being finite.
nlohmann::ordered_json train_on_rows(const RowTraining& training);

// Of a path that cannot be trained on: exit 2 or 3, before anything is run.
void check_rows(const std::string& path);

}  // namespace megadict
