// The synthetic problem of seed 003 as an experiment sees it (A1, A3, A3b; data/synth.h makes it).
#pragma once

#include "data/synth.h"
#include "lab/layers.h"

namespace megadict {

struct LabProblem {
  SynthOptions options;
  Tiles<float> x_train, x_test;  // [samples, width]
  Tiles<float> s_train, s_test;  // the true codes, [samples, latents]
  Learnt<float> dictionary;      // the true one, latent j in column j
};

// The first half of `samples`, a multiple of 2 kLane, trains. Exit 2 for options that make no data.
LabProblem make_problem(const SynthOptions& options, int64_t samples = 2048);

// A2: how many measurements compressed sensing asks for, 2 K ln(N / K).
double cs_line(int64_t latents, int64_t k);

}  // namespace megadict
