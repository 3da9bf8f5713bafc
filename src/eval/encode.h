// The sparse codes of a data set, written as compressed rows (CSR). The same file on every mesh and
// with every batch: codes come from the exact fp32 encode.
#pragma once

#include <cstdint>
#include <string>

#include "comm/mesh.h"
#include "data/normalization.h"
#include "data/shard_index.h"
#include "model/dictionary.h"

namespace megadict {

struct EncodeFile {
  std::string path;
  std::string dictionary, data;  // where both came from, kept as attributes
  int64_t rows = 0;              // the first so many; 0 = all
  int64_t batch_rows = 4096;     // global, of a pass
};

struct EncodedFile {
  int64_t rows = 0, entries = 0;
};

// Writes row_ptr i64 [rows + 1], indices i32 [entries] (ascending in a row), values f32 [entries]
// (> 0: of raw rows, z divided by the normalisation's scale, with which x_hat = z W_dec + b_dec / s
// + mean), tokens, position and document u32 [rows] where all shards have them; attributes of "/":
// format = "megadict.codes", shape (rows, n_latents), entries, d_in, activation, normalize_scale,
// dictionary, data, data_fingerprint, megadict_version. Collective over the mesh; rank 0 writes.
EncodedFile encode_data_set(const Mesh& mesh, const Dictionary& dictionary,
                            const Normalization& normalization, const ShardIndex& data,
                            const EncodeFile& out);

}  // namespace megadict
