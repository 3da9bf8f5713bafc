// Gated codes (B7): one encoder, two paths. With y = <x - b_dec, W_enc row>,
//   gate v = y + b_gate (the dictionary's b_enc);  magnitude m = e^r_mag y + b_mag
//   z = m where v > 0 and m > 0
// The gates learn by what relu(v) alone reconstructs, with the decoder and b_dec as constants
// there, and pay L1; decoder and magnitudes learn by the reconstruction from z.
#pragma once

#include "kernels/codes.h"
#include "model/dictionary.h"

namespace megadict {

struct GatedCodes {
  Codes codes, gates;  // z; relu(v) > 0, of which the codes are some
};
// `open`: entries with v > 0.
GatedCodes gated_codes(const Dictionary& dictionary, Codes open);

}  // namespace megadict
