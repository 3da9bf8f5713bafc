// Sparse codes as free parameters: S = exp(log S), one row a sample, by Adam on the synthetic loss,
// with the dictionary (C1, gradient sparse coding) or for a given one (C3: test codes, ITO).
#pragma once

#include <span>

#include "lab/layers.h"
#include "lab/small_sae.h"

namespace megadict {

struct CodeSettings {
  int64_t width = 8, latents = 16;
  double lambda = 0.01;
  double first_log = -10;    // of every code
  bool output_bias = false;  // one for all samples, from 0 (B10)
  bool unit_columns = true;
  uint64_t seed = 0;
};

template <class T>
class GradientCodes {
 public:
  // A dictionary of its own, N(0, 1), trained with the codes.
  GradientCodes(const CodeSettings& settings, int64_t samples);
  // Codes of a given dictionary [width, latents] and output bias (absent = none); both stay.
  GradientCodes(const CodeSettings& settings, int64_t samples, const Learnt<T>& dictionary,
                const Learnt<T>& bias);

  // A warm start: log(z + 1e-10).
  void start_from(const Tiles<T>& codes);
  // One step on all samples. The loss before it.
  SaeLoss step(const Tiles<T>& x, double rate);

  const Learnt<T>& dictionary() const { return dictionary_; }
  const Learnt<T>& bias() const { return bias_; }
  const Tiles<T>& codes();  // exp(log S)

 private:
  CodeSettings settings_;
  bool learns_ = false;
  Learnt<T> dictionary_, bias_, log_codes_;
  Tiles<T> codes_, x_hat_, d_x_hat_, d_codes_;
  Adam<T> of_codes_, of_dictionary_, of_bias_;
};

// e^x to two units in the last place for float, in a loop that is vectorised.
void exponentiate(std::span<const float> x, std::span<float> y);
void exponentiate(std::span<const double> x, std::span<double> y);

}  // namespace megadict
