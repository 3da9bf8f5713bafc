#include "lab/gradient_codes.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/clones.h"

namespace megadict {

// 2^n times a polynomial of the rest (Cody and Waite's two-part ln 2; Taylor to the sixth power on
// +-ln(2)/2), with x cut to where float has normal numbers.
MEGADICT_CLONES void exponentiate(std::span<const float> x, std::span<float> y) {
  for (size_t i = 0; i < x.size(); ++i) {
    const float value = std::min(88.0f, std::max(-87.0f, x[i]));
    const float n = std::floor(value * 1.44269504f + 0.5f);
    const float r = (value - n * 0.693359375f) - n * -2.12194440e-4f;
    float sum = 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    y[i] = sum * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  }
}

void exponentiate(std::span<const double> x, std::span<double> y) {
  std::transform(x.begin(), x.end(), y.begin(), [](double value) { return std::exp(value); });
}

template <class T>
GradientCodes<T>::GradientCodes(const CodeSettings& s, int64_t samples)
    : GradientCodes(s, samples, Learnt<T>("D", s.width, s.latents),
                    s.output_bias ? Learnt<T>("b", s.width, 1) : Learnt<T>()) {
  draw_normal(dictionary_, s.seed, 0);
  if (s.unit_columns) make_columns_unit(dictionary_);
  learns_ = true;
}

template <class T>
GradientCodes<T>::GradientCodes(const CodeSettings& s, int64_t samples, const Learnt<T>& dictionary,
                                const Learnt<T>& bias)
    : settings_(s),
      dictionary_(dictionary),
      bias_(bias),
      log_codes_("log S", samples, s.latents),
      codes_(samples, s.latents),
      x_hat_(samples, s.width),
      d_x_hat_(samples, s.width),
      d_codes_(samples, s.latents) {
  std::fill(log_codes_.value.begin(), log_codes_.value.end(), static_cast<T>(s.first_log));
}

template <class T>
void GradientCodes<T>::start_from(const Tiles<T>& codes) {
  std::transform(codes.values().begin(), codes.values().end(), log_codes_.value.begin(),
                 [](T z) { return std::log(z + static_cast<T>(1e-10)); });
}

template <class T>
const Tiles<T>& GradientCodes<T>::codes() {
  exponentiate({log_codes_.value.data(), log_codes_.value.size()}, codes_.values());
  return codes_;
}

template <class T>
SaeLoss GradientCodes<T>::step(const Tiles<T>& x, double rate) {
  if (learns_ && settings_.unit_columns) make_columns_unit(dictionary_);
  codes();
  multiply(dictionary_.view(), bias_.present() ? bias_.value.data() : nullptr, codes_, x_hat_);
  const SaeLoss loss = synthetic_loss(x, x_hat_, codes_, settings_.lambda, d_x_hat_);
  multiply_transposed(dictionary_.view(), d_x_hat_, d_codes_);
  const T slope = static_cast<T>(settings_.lambda / static_cast<double>(codes_.values().size()));
  const T* code = codes_.values().data();
  const T* d_code = d_codes_.values().data();
  T* gradient = log_codes_.gradient.data();
  for (size_t i = 0; i < log_codes_.gradient.size(); ++i)
    gradient[i] = (d_code[i] + slope) * code[i];
  if (learns_) {
    std::fill(dictionary_.gradient.begin(), dictionary_.gradient.end(), T{0});
    add_outer(d_x_hat_, codes_, dictionary_.gradient_view());
    of_dictionary_.step(dictionary_, {.rate = rate});
    if (bias_.present()) {
      std::fill(bias_.gradient.begin(), bias_.gradient.end(), T{0});
      add_sums(d_x_hat_, bias_.gradient.data());
      of_bias_.step(bias_, {.rate = rate});
    }
  }
  of_codes_.step(log_codes_, {.rate = rate});
  return loss;
}

template class GradientCodes<float>;
template class GradientCodes<double>;

}  // namespace megadict
