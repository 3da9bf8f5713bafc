// A rank's share of the rows that inference.h compares, and all atoms.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/range.h"
#include "comm/mesh.h"
#include "data/normalization.h"
#include "data/shard_index.h"
#include "kernels/codes.h"
#include "model/dictionary.h"

namespace megadict {

struct InferenceRows {
  int64_t total = 0;          // rows of all ranks
  at::Tensor atoms_nd;        // f32, unit decoder rows of the whole dictionary; a row of 0 stays
  at::Tensor x_bd;            // f32, this rank's rows: normalised, less b_dec
  Codes encoder;              // the dictionary's codes of them, of unit atoms
  double encode_seconds = 0;  // of the slowest rank, all rows

  Codes encoder_codes(Range rows) const;  // of some of this rank's rows
};

// The first `total` rows. Collective over the mesh.
InferenceRows inference_rows(const Mesh& mesh, const Dictionary& dictionary,
                             const Normalization& normalization, const ShardIndex& data,
                             int64_t total, int64_t batch_rows);

}  // namespace megadict
