#include "model/gated.h"

#include <ATen/ATen.h>

#include "model/code_entries.h"
#include "model/forward.h"

namespace megadict {

GatedCodes gated_codes(const Dictionary& dictionary, Codes open) {
  const at::Tensor &r_mag = dictionary.extra_l[0], &b_mag = dictionary.extra_l[1];
  const auto of = [&](const at::Tensor& each_l) { return each_l.index_select(0, open.latent); };
  Codes magnitudes = open;
  magnitudes.value = (open.value - of(dictionary.b_enc_l)) * of(exp_each(r_mag)) + of(b_mag);
  // NaN has to stay visible.
  return {entries_where(magnitudes, magnitudes.value.le(0).logical_not()), std::move(open)};
}

}  // namespace megadict
