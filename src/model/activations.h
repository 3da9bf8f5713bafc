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
  int64_t slot = 0;        // rows per owner, padded
  int64_t real_rows = 0;   // of this data row
  int64_t first_row = 0;   // position of its first row in the global batch
  int64_t batch_rows = 0;  // real rows of the global batch
};

// What codes are for: a training step chooses them over its whole batch where the activation does
// so, anything else by the dictionary's threshold, each row for itself.
enum class EncodeFor { inference, training };

// How pre-activations are found: by the screen, where there is one, and `check`: which rows it is
// to compare with the exact result.
struct EncodeWith {
  EncodeFor purpose = EncodeFor::inference;
  Screen* screen = nullptr;
  std::span<const int64_t> check = {};
};

struct Encoded {
  Codes codes;
  double least = 0;  // the smallest code of the whole batch, equal on all ranks; 0 = none asked for
  // Training with jumprelu: pre-activations within half a bandwidth of the latent's threshold, on
  // either side; values mean nothing.
  Codes edges = {};
  Codes gates = {};  // training with gated (gated.h)
};

// A number that the activation learns of each latent, besides b_enc.
struct LatentParameter {
  std::string_view name;  // of the tensor in files
  double (*start)(const ModelConfig&);
  bool positive = false;        // or 0
  bool pre_activation = false;  // of their size: grows with them
};

struct ActivationFn {
  std::string_view name, summary;
  // Codes of the rows xc = x - b_dec [F * slot, d]. Collective over feature, over the mesh where
  // `whole_batch` and a training step asks.
  Encoded (*encode)(const Mesh& mesh, const Dictionary&, const at::Tensor& xc_bd, const SelectRows&,
                    const EncodeWith&);
  bool has_l1;       // model.l1_coefficient applies
  bool has_k;        // model.k applies: codes of a row, on average of the batch where whole_batch
  bool whole_batch;  // training selects over the batch, inference by Dictionary::threshold
  bool has_l0 = false;     // model.l0_coefficient applies
  bool has_gates = false;  // training lists Encoded::gates; L1 is theirs
  std::span<const LatentParameter> parameters = {};
  std::string_view bias = "b_enc";  // what b_enc is called in other tools' files
};

std::span<const ActivationFn> all_activations();
const ActivationFn& activation_named(const std::string& name);

// Latents that each row of a shard lists before the selection; 0 where nothing is listed.
int64_t listed_latents(const ModelConfig& config);

}  // namespace megadict
