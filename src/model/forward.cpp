#include "model/forward.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "kernels/fixed_point.h"
#include "kernels/kernel_set.h"
#include "model/activations.h"
#include "model/hidden.h"
#include "model/tensor_views.h"

namespace megadict {

at::Tensor normalized(const at::Tensor& raw_bd, const Normalization& normalization) {
  at::Tensor x = raw_bd.to(at::kFloat);
  if (!normalization.mean.empty()) {
    const at::Tensor mean =
        at::from_blob(const_cast<float*>(normalization.mean.data()), {raw_bd.size(1)}, at::kFloat);
    x = x - mean.to(x.device());
  }
  return normalization.scale == 1.0 ? x : x * normalization.scale;
}

Arriving start_gather_rows(const Mesh& mesh, const MicroBatch& micro, int64_t width,
                           at::Device device) {
  const auto type = scalar_type_of(micro.dtype);
  const at::Tensor own = at::from_blob(const_cast<std::byte*>(micro.data.data()),
                                       {micro.part.slot, width}, at::TensorOptions(type))
                             .to(device);
  if (mesh.feature_size() == 1) return {own};
  Arriving raw{at::empty({micro.part.padded, width}, own.options()), own};
  raw.pending = mesh.feature->start_all_gather(view_of(own), view_of(raw.tensor), "rows");
  return raw;
}

Rows finish_rows(const Mesh& mesh, const MicroBatch& micro, const at::Tensor& raw_bd,
                 const Normalization& normalization) {
  const bool of_reader = mesh.feature_size() == 1;  // its memory
  Rows rows{normalized(raw_bd, normalization), micro.part, micro.rows};
  if (mesh.data_size() > 1) rows.raw_bd = of_reader ? raw_bd.clone() : raw_bd;
  // Normalising moved the padding away from zero.
  if (of_reader && rows.x_bd.is_same(raw_bd)) rows.x_bd = rows.x_bd.clone();
  rows.x_bd.narrow(0, rows.real_rows(), micro.part.padded - rows.real_rows()).zero_();
  return rows;
}

Rows gather_rows(const Mesh& mesh, const MicroBatch& micro, int64_t width,
                 const Normalization& normalization, at::Device device) {
  return finish_rows(mesh, micro, start_gather_rows(mesh, micro, width, device).wait(),
                     normalization);
}

at::Tensor owned_slot(const Mesh& mesh, const at::Tensor& all_bd, int64_t slot) {
  return all_bd.narrow(0, mesh.feature_index * slot, slot);
}

Arriving start_sum_at_owners(const Mesh& mesh, const at::Tensor& partial_bd, int64_t slot,
                             const char* name) {
  if (mesh.feature_size() == 1) return {partial_bd};
  Arriving own{at::empty({slot, partial_bd.size(1)}, partial_bd.options()), partial_bd};
  own.pending = mesh.feature->start_reduce_scatter(view_of(partial_bd), view_of(own.tensor), name);
  return own;
}

at::Tensor sum_at_owners(const Mesh& mesh, const at::Tensor& partial_bd, int64_t slot,
                         const char* name) {
  return start_sum_at_owners(mesh, partial_bd, slot, name).wait();
}

Arriving start_gather_from_owners(const Mesh& mesh, const at::Tensor& own_sd, const char* name) {
  if (mesh.feature_size() == 1) return {own_sd};
  const at::Tensor own = own_sd.contiguous();
  Arriving all{at::empty({own.size(0) * mesh.feature_size(), own.size(1)}, own.options()), own};
  all.pending = mesh.feature->start_all_gather(view_of(own), view_of(all.tensor), name);
  return all;
}

at::Tensor gather_from_owners(const Mesh& mesh, const at::Tensor& own_sd, const char* name) {
  return start_gather_from_owners(mesh, own_sd, name).wait();
}

at::Tensor Decoding::wait() {
  const at::Tensor own = sum.wait();
  return unit > 0 ? (own.to(at::kDouble) * unit).to(at::kFloat) : own;
}

Decoding start_decode(const Mesh& mesh, const Codes& codes, const at::Tensor& w_dec_ld,
                      int64_t latents, int64_t slot, Sums sums, const char* name) {
  const KernelSet& kernels = kernels_for(w_dec_ld);
  if (sums == Sums::exact) {
    double largest[2] = {codes.nnz() > 0 ? largest_magnitude(codes.value) : 0,
                         largest_magnitude(w_dec_ld)};
    mesh.world->all_reduce(view_of(largest, 2), ReduceOp::max, "largest code");
    const double bound = largest[0] * largest[1];
    // What is not finite is found in the residual, and ends the run.
    if (std::isfinite(bound)) {
      const FixedPoint unit = fixed_point(bound, latents);
      return {start_sum_at_owners(mesh, kernels.decode_fixed(codes, w_dec_ld, unit.up), slot, name),
              unit.down};
    }
  }
  return {start_sum_at_owners(mesh, kernels.decode(codes, w_dec_ld), slot, name)};
}

at::Tensor seen_by_encoder(const Dictionary& dictionary, const at::Tensor& x_bd) {
  return has_front(dictionary.config) ? in_front(dictionary.config, dictionary.hidden, x_bd)
                                      : x_bd - dictionary.b_dec_d;
}

at::Tensor after_decoder(const Dictionary& dictionary, const at::Tensor& decoded_bd) {
  return has_back(dictionary.config) ? behind(dictionary.config, dictionary.hidden, decoded_bd)
                                     : decoded_bd;
}

Forward encode_rows(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                    const EncodeWith& with) {
  Forward out;
  const Timer timer(out.encode_s);
  out.xc_bd = seen_by_encoder(dictionary, rows.x_bd);
  const bool front = has_front(dictionary.config);
  const at::Tensor own = owned_slot(mesh, front ? rows.x_bd : out.xc_bd, rows.part.slot);
  out.target_sd = front ? own - dictionary.b_dec_d : own;
  const SelectRows which{rows.part.slot, rows.real_rows(), rows.part.row_range.begin,
                         rows.batch_rows};
  Encoded encoded = activation_named(dictionary.config.activation)
                        .encode(mesh, dictionary, out.xc_bd, which, with);
  out.codes = std::move(encoded.codes);
  out.least = encoded.least;
  out.edges = std::move(encoded.edges);
  out.gates = std::move(encoded.gates);
  return out;
}

Decoding start_reconstruction(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                              const Codes& codes, Sums sums, Forward& fwd) {
  const Timer timer(fwd.decode_s);
  return start_decode(mesh, codes, dictionary.w_dec_ld, dictionary.n, rows.part.slot, sums,
                      "reconstruction");
}

void finish_residual(const Dictionary& dictionary, const Rows& rows, Decoding& decoding,
                     Forward& fwd) {
  const Timer timer(fwd.decode_s);
  const int64_t slot = rows.part.slot, real = rows.part.owned.size();
  const at::Tensor sum = decoding.wait(), more = after_decoder(dictionary, sum);
  if (has_back(dictionary.config)) fwd.decoded_sd = sum;
  fwd.residual_sd = fwd.residual_sd.defined() ? fwd.residual_sd + more : more - fwd.target_sd;
  fwd.residual_sd.narrow(0, real, slot - real).zero_();
}

Forward forward(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                const EncodeWith& with, Sums sums) {
  Forward out = encode_rows(mesh, dictionary, rows, with);
  Decoding decoding = start_reconstruction(mesh, dictionary, rows, out.codes, sums, out);
  finish_residual(dictionary, rows, decoding, out);
  return out;
}

// Both in blocks: a copy of all of x in fp64 would be twice as large as x.
double sum_of_squares(const at::Tensor& x) {
  constexpr int64_t kBlock = int64_t{1} << 20;
  const at::Tensor flat = x.reshape({-1});
  double sum = 0;
  for (int64_t begin = 0; begin < flat.numel(); begin += kBlock) {
    const at::Tensor block = flat.narrow(0, begin, std::min(kBlock, flat.numel() - begin));
    sum += block.to(at::kDouble).square().sum().item<double>();
  }
  return sum;
}

at::Tensor row_squares(const at::Tensor& rows_bd) {
  return norms_of_rows(rows_bd).square_();
}

at::Tensor norms_of_rows(const at::Tensor& rows_ld) {
  constexpr int64_t kBlock = 1024;
  at::Tensor norms = at::empty({rows_ld.size(0)}, rows_ld.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < rows_ld.size(0); begin += kBlock) {
    const int64_t count = std::min(kBlock, rows_ld.size(0) - begin);
    norms.narrow(0, begin, count).copy_(rows_ld.narrow(0, begin, count).to(at::kDouble).norm(2, 1));
  }
  return norms;
}

// One after the other on the CPU: exp of a vector may round otherwise in its last elements, and
// shards begin anywhere.
at::Tensor exp_each(const at::Tensor& x_l) {
  if (!x_l.is_cpu()) return x_l.exp();
  const at::Tensor x = x_l.contiguous();
  at::Tensor out = at::empty_like(x);
  std::transform(x.const_data_ptr<float>(), x.const_data_ptr<float>() + x.numel(),
                 out.mutable_data_ptr<float>(), [](float each) {
                   return static_cast<float>(std::exp(static_cast<double>(each)));
                 });
  return out;
}

}  // namespace megadict
