// Sparse data with a known dictionary: x = sum over K active latents of s_j D_j, plus noise
// (reference items A1, A3 and A3b of the seeds). Every number is a function of (seed, what, row
// id), so the data do not depend on how many rows are made, in which order, or by how many
// processes.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace megadict {

struct SynthOptions {
  int64_t n_latents = 16;     // columns of the dictionary, each ~N(0, I) scaled to length 1
  int64_t width = 8;          // d
  int64_t k = 3;              // active latents of a row
  std::string sign = "half";  // half: |N(0,1)| · signed: N(0,1)
  double noise_std = 0;       // N(0, noise_std^2) added to every entry
  double zipf = 0;            // a > 0: indices drawn with weights p_i ~ i^-a without replacement,
                              // magnitudes times (p_i + 0.1); 0 = uniform
  std::string k_dist = "fixed";  // fixed · uniform: K of each row uniform on 1 .. 2k-1
  double correlation = 0;        // rho > 0: a row's K largest y_j = sqrt(rho) g_group(j) +
                                 // sqrt(1-rho) e_j are active; groups of 4 consecutive latents
  uint64_t seed = 0;
};

struct SynthCode {
  std::vector<int64_t> latents;  // ascending
  std::vector<double> values;    // of the same length; none is zero
};

class SynthSource {
 public:
  // Exit 2 with the option's name for values out of range.
  explicit SynthSource(const SynthOptions& options);

  const SynthOptions& options() const { return options_; }
  const std::vector<float>& dictionary() const { return dictionary_; }  // [n_latents, width]
  SynthCode code(int64_t row) const;
  void activation(int64_t row, float* x) const;  // [width]

 private:
  SynthOptions options_;
  std::vector<float> dictionary_;
  std::vector<double> weight_, cumulative_;  // Zipf: p_i and its running sum; empty = uniform
};

struct SynthDataset {
  SynthOptions options;
  std::string out;   // folder; must not exist or be empty
  int64_t rows = 0;  // in all; the last eval_fraction of them go to OUT/eval
  double eval_fraction = 0.05;
  std::string dtype = "float32";  // of the shards: float32 | float16 | bfloat16
};

// Writes OUT/*.h5, OUT/eval/*.h5 and OUT/truth.safetensors (W_dec [n_latents, width], the options
// as metadata). Returns {training rows, evaluation rows}.
std::pair<int64_t, int64_t> write_synth(const SynthDataset& dataset);

// Evaluation rows for a fraction of `rows`: rounded, at least 1 when the fraction is above 0, never
// all. Exit 2 for a fraction outside [0, 1) or rows too few to split.
int64_t eval_rows_of(int64_t rows, double eval_fraction);

}  // namespace megadict
