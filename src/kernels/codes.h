// Sparse codes: what the dictionary says about b rows, over the l latents of a shard. Only positive
// entries are stored: an entry is there if and only if the latent fired on that row.
#pragma once

#include <ATen/core/Tensor.h>

namespace megadict {

struct Codes {  // by row
  int64_t rows = 0, latents = 0;
  at::Tensor row_start;  // i64 [b + 1]
  at::Tensor latent;     // i32 [nnz], local ids
  at::Tensor value;      // f32 [nnz], > 0
  int64_t nnz() const { return latent.defined() ? latent.numel() : 0; }
};

struct LatentCodes {  // the same entries by latent, rows ascending within each
  int64_t rows = 0, latents = 0;
  at::Tensor latent_start;  // i64 [l + 1]
  at::Tensor row;           // i32 [nnz]
  at::Tensor value;         // f32 [nnz]
};

// The best k' pre-activations of each row within a shard, by the total order (value descending,
// latent ascending). k' = min(k, l).
struct Candidates {
  at::Tensor value;   // f32 [b, k']
  at::Tensor latent;  // i32 [b, k']
};

}  // namespace megadict
