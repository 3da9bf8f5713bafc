#include "model/gated.h"

#include <ATen/ATen.h>

#include <cmath>

#include "model/code_entries.h"

namespace megadict {

// One after the other on the CPU: exp of a vector may round otherwise in its last elements, and
// shards begin anywhere.
at::Tensor magnitude_gains(const at::Tensor& r_mag_l) {
  if (!r_mag_l.is_cpu()) return r_mag_l.exp();
  at::Tensor out = at::empty_like(r_mag_l);
  const auto* r = r_mag_l.const_data_ptr<float>();
  auto* gain = out.mutable_data_ptr<float>();
  for (int64_t j = 0; j < out.numel(); ++j)
    gain[j] = static_cast<float>(std::exp(static_cast<double>(r[j])));
  return out;
}

GatedCodes gated_codes(const Dictionary& dictionary, Codes open) {
  const at::Tensor &r_mag = dictionary.extra_l[0], &b_mag = dictionary.extra_l[1];
  const auto of = [&](const at::Tensor& each_l) { return each_l.index_select(0, open.latent); };
  Codes magnitudes = open;
  magnitudes.value = (open.value - of(dictionary.b_enc_l)) * of(magnitude_gains(r_mag)) + of(b_mag);
  // NaN has to stay visible.
  return {entries_where(magnitudes, magnitudes.value.le(0).logical_not()), std::move(open)};
}

}  // namespace megadict
