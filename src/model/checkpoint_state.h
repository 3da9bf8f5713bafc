// state.json of a checkpoint (layout: saved.h), every value checked: whoever holds one need not.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/range.h"
#include "model/config.h"

namespace megadict {

inline constexpr const char* kCheckpointFormat = "megadict checkpoint 1";

struct CheckpointPart {
  std::string file;  // a name in the checkpoint's folder
  Range latents;
};

struct CheckpointState {
  int64_t d = 0;
  ModelConfig model;  // encoder, activation, decoder, k, n_latents, hidden, decoder_norm
  uint64_t seed = 0;
  int64_t step = 0, tokens = 0;
  int64_t resampled_at = -1;  // the step; -1 = never
  double var_total = 0, scale = 1;
  double threshold = 0;          // batchtopk's; 0 = relu
  double threshold_average = 0;  // over the run's batches, which training goes on with
  bool centred = false;
  nlohmann::json data;                // an object
  std::vector<CheckpointPart> parts;  // they tile the latents
  std::string mesh;                   // that wrote it, "2x3"
  // Of each part's screen (Screen::Memory in kernels/screen.h); empty where none is written.
  std::vector<double> screen_windows, screen_thresholds;
};

// state.json's `model`, as read_checkpoint_state() takes it.
nlohmann::ordered_json model_json(const ModelConfig& model);

// Exit 3 with the path, what is wrong and what is allowed.
CheckpointState read_checkpoint_state(const std::string& path);

}  // namespace megadict
