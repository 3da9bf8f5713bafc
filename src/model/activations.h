// The activations: from pre-activations of a shard to sparse codes. A closed list; tests loop over
// it.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "comm/mesh.h"
#include "kernels/screen.h"
#include "model/dictionary.h"

namespace megadict {

struct SelectRows {
  int64_t slot = 0;       // rows per owner, padded
  int64_t real_rows = 0;  // of this data row
};

// How pre-activations are found: by the screen, where there is one, and `check`: which rows it is
// to compare with the exact result.
struct EncodeWith {
  Screen* screen = nullptr;
  std::span<const int64_t> check = {};
};

struct ActivationFn {
  std::string_view name, summary;
  // Codes of the rows xc = x - b_dec [F * slot, d]. Collective over feature.
  Codes (*encode)(Communicator& feature, const Dictionary&, const at::Tensor& xc_bd,
                  const SelectRows&, const EncodeWith&);
  bool has_l1;    // model.l1_coefficient applies
  bool screened;  // has a use for a screen
};

std::span<const ActivationFn> all_activations();
const ActivationFn& activation_named(const std::string& name);

}  // namespace megadict
