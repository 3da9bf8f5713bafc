// Dictionaries on disk in the checkpoint's own layout, read for evaluation, export and
// `model.init_from` (training reads optimiser state besides: train/checkpoint.h).
//
// A checkpoint folder (also `final/`) holds part_00_of_08.safetensors ... and state.json. A part
// holds a contiguous range of latents: W_enc [l,d], W_dec [l,d] (absent when tied), b_enc [l]; part
// 0 also b_dec [d] and normalize.mean [d]; metadata "NAME.latents" = "begin:end" for every tensor
// that is split over latents. Besides, what the activation learns of each latent (jumprelu:
// threshold [l]), and of the hidden layers (hidden.h) part 0 holds all. With an averaged copy: the
// same names with the prefix "ema.". state.json (checkpoint_state.h): format, n_latents, d,
// model.{encoder,activation,decoder,k, and with hidden layers hidden,decoder_norm}, threshold
// (batchtopk alone), seed, normalize.{scale,centred}, step, tokens, var_total,
// data.{fingerprint,model,hook,layer,...}, parts
// [{file, begin, end}], screen.{windows,thresholds} with a number for each part.
#pragma once

#include <compare>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/range.h"
#include "data/normalization.h"
#include "model/dictionary.h"

namespace megadict {

struct SavedDictionary {
  Dictionary dictionary;
  Normalization normalization;
  int64_t step = 0, tokens = 0;
  double var_total = 0;
  std::string source_model, hook;  // of the activations; "" where unknown
  int64_t layer = -1;
};

struct SavedStep {
  int64_t step;
  std::string folder;
  auto operator<=>(const SavedStep&) const = default;
};

// The folders of RUN/checkpoints that were written to their end, by step. One that is damaged is
// among them: whoever reads it says so.
std::vector<SavedStep> saved_steps(const std::string& run);

// The one that RUN/latest names, else the one of the highest step; "" where there is none.
std::string newest_checkpoint(const std::string& run);

// RUN/final where it is complete and nothing was saved after it, else newest_checkpoint().
std::string newest_state(const std::string& run);

// RUN/checkpoints/NAME, a `final/` folder, a dictionary in another tool's layout (formats.h), or a
// run folder (then newest_state()). Exit 2 where there is none, naming what was looked for.
std::string find_checkpoint(const std::string& path);

// Rows shard_of(n, parts, index) of the dictionary at `folder` (as find_checkpoint returns it).
// `weights`: "last" or "ema" (exit 2 where no average was kept). Exit 3 on missing or torn files.
SavedDictionary load_saved(const std::string& folder, const std::string& weights, int64_t parts = 1,
                           int64_t index = 0);

// A whole dictionary as a folder of the checkpoint's layout, for those who read weights alone: it
// holds no optimiser's state and belongs to no data. Exit 2 for a folder with content; it appears
// complete or not at all.
void write_saved(const SavedDictionary& saved, const std::string& folder);

}  // namespace megadict
