// Forward through a dictionary split over the mesh, stage by stage (src/README.md, "The path of a
// batch"), and the sums every caller needs. Training, evaluation and initialisation all use it.
#pragma once

#include <ATen/core/Tensor.h>

#include "comm/mesh.h"
#include "data/batch_stream.h"
#include "data/normalization.h"
#include "kernels/codes.h"
#include "model/activations.h"
#include "model/arriving.h"
#include "model/dictionary.h"
#include "model/exact_sums.h"

namespace megadict {

// Rows of one micro-batch as a data row's ranks see them.
struct Rows {
  at::Tensor x_bd;  // [F * slot, d] fp32, normalised; padding rows zero
  RowPart part;
  int64_t batch_rows = 0;  // global rows of the micro-batch
  at::Tensor raw_bd = {};  // the same in the data's own type; only with data axis > 1
  int64_t real_rows() const { return part.row_range.size(); }
};

at::Tensor normalized(const at::Tensor& raw_bd, const Normalization& normalization);

// This rank's own rows to the whole data row's, in the data's own element type over the wire; in
// two halves, of which the first reads `micro` until the second. Collective over feature.
Arriving start_gather_rows(const Mesh& mesh, const MicroBatch& micro, int64_t width,
                           at::Device device);
Rows finish_rows(const Mesh& mesh, const MicroBatch& micro, const at::Tensor& raw_bd,
                 const Normalization& normalization);
Rows gather_rows(const Mesh& mesh, const MicroBatch& micro, int64_t width,
                 const Normalization& normalization, at::Device device);

struct Forward {
  at::Tensor xc_bd;                   // what the encoder sees: x - b_dec, or in_front(x)
  Codes codes;                        // of the local latents, all rows of the data row
  double least = 0;                   // see Encoded
  Codes edges, gates;                 // as `least`
  at::Tensor target_sd;               // x - b_dec of the owned slot
  at::Tensor decoded_sd;              // z W_dec of it, where layers follow
  at::Tensor residual_sd;             // x_hat - x of it; padding rows zero
  double encode_s = 0, decode_s = 0;  // seconds, exchange included
};

// Reconstructions on their way to the rows' owners: fp32, or in units of `unit`.
struct Decoding {
  Arriving sum;
  double unit = 0;
  at::Tensor wait();  // [slot, d]; collective like the start
};

// Collective over feature; training with an activation over the whole batch: over the mesh.
Forward forward(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                const EncodeWith& with = {}, Sums sums = Sums::fast);
// The same in three steps: all but the residual; the decode's start, of all codes or of some; the
// residual, from which the next reconstruction is added to it.
Forward encode_rows(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                    const EncodeWith& with);
Decoding start_reconstruction(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                              const Codes& codes, Sums sums, Forward& fwd);
void finish_residual(const Dictionary& dictionary, const Rows& rows, Decoding& decoding,
                     Forward& fwd);

// What the encoder sees of x: x - b_dec, or what the layers in front make of it.
at::Tensor seen_by_encoder(const Dictionary& dictionary, const at::Tensor& x_bd);
// x_hat - b_dec of z W_dec: itself, or what the layers behind make of it.
at::Tensor after_decoder(const Dictionary& dictionary, const at::Tensor& decoded_bd);

// Sum over a data row's shards of value * w_dec row at the rows' owners: [slot, d]. `latents`: of
// the whole dictionary. Collective over feature; exact sums over world too.
Decoding start_decode(const Mesh& mesh, const Codes& codes, const at::Tensor& w_dec_ld,
                      int64_t latents, int64_t slot, Sums sums, const char* name);
inline at::Tensor decode_at_owners(const Mesh& mesh, const Codes& codes, const at::Tensor& w_dec_ld,
                                   int64_t latents, int64_t slot, Sums sums, const char* name) {
  return start_decode(mesh, codes, w_dec_ld, latents, slot, sums, name).wait();
}

// Partial reconstructions [F * slot, d] summed at the rows' owners: [slot, d]. Collective.
at::Tensor sum_at_owners(const Mesh& mesh, const at::Tensor& partial_bd, int64_t slot,
                         const char* name);
Arriving start_sum_at_owners(const Mesh& mesh, const at::Tensor& partial_bd, int64_t slot,
                             const char* name);
// Owned rows [slot, d] to all rows of the data row [F * slot, d]. Collective over feature.
at::Tensor gather_from_owners(const Mesh& mesh, const at::Tensor& own_sd, const char* name);
Arriving start_gather_from_owners(const Mesh& mesh, const at::Tensor& own_sd, const char* name);
// The owned slot of a [F * slot, d] tensor.
at::Tensor owned_slot(const Mesh& mesh, const at::Tensor& all_bd, int64_t slot);

double sum_of_squares(const at::Tensor& x);           // fp64
at::Tensor row_squares(const at::Tensor& rows_bd);    // fp64 [b]; each row's bits its own
at::Tensor norms_of_rows(const at::Tensor& rows_ld);  // fp64 [l]
at::Tensor exp_each(const at::Tensor& x_l);           // fp32; each element's bits its own

}  // namespace megadict
