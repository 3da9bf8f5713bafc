// The stages of a step that see tokens: each micro-batch from its rows to codes, residual and what
// learns from them. step.cpp does what needs the whole batch.
#pragma once

#include <vector>

#include "model/auxk.h"
#include "model/matryoshka.h"
#include "train/latent_parameters.h"
#include "train/preact.h"
#include "train/step.h"
#include "train/step_sums.h"
#include "train/token_exchange.h"

namespace megadict {

// A step on its way.
struct Step {
  const Mesh& mesh;
  const StepConfig& config;
  TrainState& state;
  StepWorkspace& work;
  const MicroBatchSource& next;
  AuxK aux = {};
  StepSums sums = {};
  StageSeconds seconds = {};
  std::vector<Level> levels = {};
  double l1_weight = 0;  // L1 coefficient, warmed up, over var_total
  double l0_weight = 0;  // L0 coefficient, likewise
  bool gated = false;    // model/gated.h
  LatentTerms terms = {};
  Preact preact = {};
  std::vector<at::Tensor> extra = {};  // gradients of Dictionary::extra_l, own rows
  double hidden_square = 0;
  std::vector<at::Tensor> hidden = {};  // of Dictionary::hidden; of my own rows, then of all
  bool one_pass = true;
  std::vector<BatchPart> parts = {};   // of an update in one pass
  std::vector<at::Tensor> g_own = {};  // of my own rows, for exact sums
  Sums sums_as() const { return config.deterministic ? Sums::exact : Sums::fast; }
  Screen* screen() const { return work.screen ? &*work.screen : nullptr; }
  double least = 0;  // smallest code of the batch, where it was asked for
};

// Returns the rows of the batch. Collective over the mesh.
int64_t run_stages(Step& step);

}  // namespace megadict
