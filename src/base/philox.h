// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number depends on
// (seed, purpose, step, id) alone, never on rank, thread or call order, so every mesh draws the
// same ones.
#pragma once

#include <array>
#include <cstdint>

namespace megadict {

// What a random number is for; part of its key, so that no two uses share a stream.
enum class Purpose : uint32_t {
  init_weights = 1,
  chunk_order = 2,
  row_order = 3,
  synth_dictionary = 4,
  synth_code = 5,
  synth_noise = 6,
  shuffle = 7,
  split = 8,
  screen_check = 9,
  resample = 10,
  auxk_stratum = 11,
  init_hidden = 12,
  init_encoder = 13,
  random_baseline = 20,
  bootstrap = 30,
  lab_init = 40,
  lab_draw = 41,
  test = 99,
};

using Philox4 = std::array<uint32_t, 4>;

// The bare generator: counter and key as in the paper (known-answer tests use it).
Philox4 philox4x32_10(Philox4 counter, std::array<uint32_t, 2> key);

struct Rng {
  uint64_t seed = 0;
  Purpose purpose = Purpose::test;
  uint64_t step = 0;  // epoch, step or table number; at most 2^40
  // Four 32-bit words for thing `id` (at most 2^48), draw number `draw` (at most 2^16).
  Philox4 words(uint64_t id, uint32_t draw = 0) const;
  uint64_t bits64(uint64_t id, uint32_t draw = 0) const;
  double uniform(uint64_t id, uint32_t draw = 0) const;                 // [0, 1), 53 bits
  std::array<double, 2> normals(uint64_t id, uint32_t draw = 0) const;  // two N(0,1), Box-Muller
};

}  // namespace megadict
