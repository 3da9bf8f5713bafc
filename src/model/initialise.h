// The dictionary at the start: decoder rows random unit vectors keyed by (seed,
// latent), b_dec by default the geometric median of the sample, W_enc = s W_dec with s by least
// squares on the sample; a tied dictionary starts at row norm sqrt(s).
#pragma once

#include <cstdint>

#include "comm/mesh.h"
#include "model/dictionary.h"

namespace megadict {

// Rows of the sample the scale s is fitted on: it costs an encode of these rows.
inline constexpr int64_t kScaleRows = 4096;

// Weiszfeld's iteration in fp64 on rows [m, d], the same bits for any number of threads.
at::Tensor geometric_median(const at::Tensor& rows_md);

// Storage has `padded` >= latents rows, the rest zero; w_enc_ld and w_dec_ld are its first rows.
Dictionary empty_dictionary(const ModelConfig& config, int64_t n, int64_t d, Range latents,
                            int64_t padded, at::Device device);

// `sample_md`: normalised rows, the same on every rank. Collective over the mesh.
Dictionary initialise(const Mesh& mesh, const ModelConfig& config, int64_t n, Range latents,
                      int64_t padded, const at::Tensor& sample_md, uint64_t seed);

}  // namespace megadict
