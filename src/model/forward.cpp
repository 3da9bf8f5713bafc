#include "model/forward.h"

#include <ATen/ATen.h>

#include "base/clock.h"
#include "kernels/fixed_point.h"
#include "kernels/kernel_set.h"
#include "model/activations.h"
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

Rows gather_rows(const Mesh& mesh, const MicroBatch& micro, int64_t width,
                 const Normalization& normalization, at::Device device) {
  const auto type = scalar_type_of(micro.dtype);
  const at::Tensor own = at::from_blob(const_cast<std::byte*>(micro.data.data()),
                                       {micro.part.slot, width}, at::TensorOptions(type))
                             .to(device);
  at::Tensor raw = own;
  if (mesh.feature_size() > 1) {
    raw = at::empty({micro.part.padded, width}, own.options());
    mesh.feature->all_gather(view_of(own), view_of(raw), "rows");
  }
  Rows rows{normalized(raw, normalization), micro.part, micro.rows};
  if (mesh.data_size() > 1) rows.raw_bd = raw.is_same(own) ? raw.clone() : raw;
  // Normalising moved the padding away from zero, and own rows may still be the reader's memory.
  if (rows.x_bd.is_same(own)) rows.x_bd = rows.x_bd.clone();
  rows.x_bd.narrow(0, rows.real_rows(), micro.part.padded - rows.real_rows()).zero_();
  return rows;
}

at::Tensor owned_slot(const Mesh& mesh, const at::Tensor& all_bd, int64_t slot) {
  return all_bd.narrow(0, mesh.feature_index * slot, slot);
}

at::Tensor sum_at_owners(const Mesh& mesh, const at::Tensor& partial_bd, int64_t slot,
                         const char* name) {
  if (mesh.feature_size() == 1) return partial_bd;
  at::Tensor own = at::empty({slot, partial_bd.size(1)}, partial_bd.options());
  mesh.feature->reduce_scatter(view_of(partial_bd), view_of(own), name);
  return own;
}

at::Tensor gather_from_owners(const Mesh& mesh, const at::Tensor& own_sd, const char* name) {
  if (mesh.feature_size() == 1) return own_sd;
  at::Tensor all =
      at::empty({own_sd.size(0) * mesh.feature_size(), own_sd.size(1)}, own_sd.options());
  const at::Tensor own = own_sd.contiguous();
  mesh.feature->all_gather(view_of(own), view_of(all), name);
  return all;
}

at::Tensor decode_at_owners(const Mesh& mesh, const Codes& codes, const at::Tensor& w_dec_ld,
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
      const at::Tensor own =
          sum_at_owners(mesh, kernels.decode_fixed(codes, w_dec_ld, unit.up), slot, name);
      return (own.to(at::kDouble) * unit.down).to(at::kFloat);
    }
  }
  return sum_at_owners(mesh, kernels.decode(codes, w_dec_ld), slot, name);
}

Forward forward(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                const EncodeWith& with, Sums sums) {
  const int64_t slot = rows.part.slot;
  Forward out;
  out.xc_bd = rows.x_bd - dictionary.b_dec_d;
  const ActivationFn& activation = activation_named(dictionary.config.activation);
  {
    const Timer timer(out.encode_s);
    const SelectRows which{slot, rows.real_rows(), rows.part.row_range.begin, rows.batch_rows};
    Encoded encoded = activation.encode(mesh, dictionary, out.xc_bd, which, with);
    out.codes = std::move(encoded.codes);
    out.least = encoded.least;
  }
  const Timer timer(out.decode_s);
  out.residual_sd = decode_at_owners(mesh, out.codes, dictionary.w_dec_ld, dictionary.n, slot, sums,
                                     "reconstruction") -
                    owned_slot(mesh, out.xc_bd, slot);
  const int64_t real = rows.part.owned.size();
  out.residual_sd.narrow(0, real, slot - real).zero_();
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

}  // namespace megadict
