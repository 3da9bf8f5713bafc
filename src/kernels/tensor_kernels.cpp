// The same operations as plain tensor operations: they run on any device and are the reference the
// hand-written ones are tested against. Work is cut into chunks, so that no b x l tensor exists.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernel_set.h"

namespace megadict {

namespace {

constexpr int64_t kChunkElements = int64_t{1} << 24;  // of a temporary: 64 MiB of fp32

// order_key() of order.h as a signed integer that sorts the same way: (ordered value << 32) minus
// the position.
at::Tensor order_keys(const at::Tensor& value, const at::Tensor& position) {
  const at::Tensor bits =
      (value + 0.0).view(at::kInt).to(at::kLong).masked_fill(value.isnan(), 0x7FFFFFFF);
  // Negative floats: the sign bit set and the rest inverted, so that order is kept as integers.
  const at::Tensor ordered = at::where(bits >= 0, bits, -(bits.bitwise_and(0x7FFFFFFF)) - 1);
  return ordered * (int64_t{1} << 32) - position;
}

// The k largest keys of each row, best first; returns their columns.
at::Tensor top_columns(const at::Tensor& value, int64_t k) {
  const at::Tensor position = at::arange(value.size(1), value.options().dtype(at::kLong));
  const auto [keys, columns] = order_keys(value, position).topk(k, 1, true, true);
  return columns;
}

Candidates tensor_topk(const EncodeArgs& args, int64_t k) {
  const int64_t rows = args.x_bd.size(0), l = args.w_enc_ld.size(0), kept = std::min(k, l);
  const auto options = args.x_bd.options();
  Candidates out{at::empty({rows, kept}, options),
                 at::empty({rows, kept}, options.dtype(at::kInt))};
  const int64_t chunk = std::max<int64_t>(1, kChunkElements / std::max<int64_t>(l, 1));
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const at::Tensor v =
        at::addmm(args.b_enc_l, args.x_bd.narrow(0, begin, count), args.w_enc_ld.t());
    const at::Tensor columns = top_columns(v, kept);
    out.value.narrow(0, begin, count).copy_(v.gather(1, columns));
    out.latent.narrow(0, begin, count).copy_(columns);
  }
  return out;
}

at::Tensor row_starts(const at::Tensor& counts) {
  at::Tensor start = at::zeros({counts.size(0) + 1}, counts.options().dtype(at::kLong));
  start.narrow(0, 1, counts.size(0)).copy_(counts.cumsum(0));
  return start;
}

// Codes from dense values and a mask of the same shape; `latent` gives the id of each column.
Codes codes_where(const at::Tensor& mask, const at::Tensor& value, const at::Tensor& latent,
                  int64_t latents) {
  return {mask.size(0), latents, row_starts(mask.sum(1)), latent.masked_select(mask).to(at::kInt),
          value.masked_select(mask)};
}

Codes tensor_above(const EncodeArgs& args, float threshold) {
  const int64_t rows = args.x_bd.size(0), l = args.w_enc_ld.size(0);
  const int64_t chunk = std::max<int64_t>(1, kChunkElements / std::max<int64_t>(l, 1));
  const at::Tensor ids = at::arange(l, args.x_bd.options().dtype(at::kInt));
  std::vector<at::Tensor> counts, latent, value;
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const at::Tensor v =
        at::addmm(args.b_enc_l, args.x_bd.narrow(0, begin, count), args.w_enc_ld.t());
    const at::Tensor mask = v.le(threshold).logical_not();  // NaN stays visible
    counts.push_back(mask.sum(1));
    latent.push_back(ids.expand_as(v).masked_select(mask));
    value.push_back(v.masked_select(mask));
  }
  if (rows == 0)
    return {0, l, at::zeros({1}, ids.options().dtype(at::kLong)), ids.narrow(0, 0, 0),
            at::empty({0}, args.x_bd.options())};
  return {rows, l, row_starts(at::cat(counts)), at::cat(latent), at::cat(value)};
}

void tensor_kth(const at::Tensor& values_psc, int64_t k, at::Tensor& tau_s, at::Tensor& cut_s) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const at::Tensor lists = values_psc.permute({1, 0, 2}).flatten(1);  // [slot, parts * c]
  const int64_t slot = lists.size(0);
  if (lists.size(1) < k || slot == 0) {
    tau_s = at::full({slot}, kNone, lists.options());
    cut_s = at::full({slot}, kCutAll, lists.options().dtype(at::kLong));
    return;
  }
  const at::Tensor last = top_columns(lists, k).narrow(1, k - 1, 1);
  tau_s = lists.gather(1, last).squeeze(1);
  const at::Tensor all = tau_s.eq(kNone);
  cut_s = at::where(all, at::full_like(last.squeeze(1), kCutAll), last.squeeze(1));
}

Codes tensor_keep(const Candidates& candidates, int64_t latents, const at::Tensor& tau_b,
                  const at::Tensor& cut_b, int64_t first) {
  const at::Tensor& v = candidates.value;
  const at::Tensor tau = tau_b.unsqueeze(1), cut = cut_b.unsqueeze(1);
  const at::Tensor position = at::arange(v.size(1), cut.options()) + first;
  const at::Tensor tied = v.eq(tau).logical_and(position.unsqueeze(0) <= cut);
  const at::Tensor keep = v.gt(tau).logical_or(tied).logical_and(v.gt(0)).logical_or(v.isnan());
  return codes_where(keep, v, candidates.latent, latents);
}

at::Tensor rows_of(const Codes& codes) {
  const at::Tensor counts = codes.row_start.diff();
  return at::repeat_interleave(counts);  // i64 [nnz]
}

// Calls work(first entry, count) on chunks whose [entries, d] temporaries stay bounded.
template <class Work>
void for_entries(int64_t nnz, int64_t d, Work&& work) {
  const int64_t chunk = std::max<int64_t>(1, kChunkElements / std::max<int64_t>(d, 1));
  for (int64_t begin = 0; begin < nnz; begin += chunk) work(begin, std::min(chunk, nnz - begin));
}

at::Tensor tensor_decode(const Codes& codes, const at::Tensor& w_dec_ld) {
  at::Tensor out = at::zeros({codes.rows, w_dec_ld.size(1)}, w_dec_ld.options());
  const at::Tensor row = rows_of(codes);
  for_entries(codes.nnz(), w_dec_ld.size(1), [&](int64_t begin, int64_t count) {
    const at::Tensor atoms = w_dec_ld.index_select(0, codes.latent.narrow(0, begin, count));
    out.index_add_(0, row.narrow(0, begin, count),
                   atoms * codes.value.narrow(0, begin, count).unsqueeze(1));
  });
  return out;
}

LatentCodes tensor_by_latent(const Codes& codes) {
  const auto [sorted, order] = codes.latent.to(at::kLong).sort(/*stable=*/true, 0, false);
  const at::Tensor counts = at::bincount(sorted, {}, codes.latents);
  return {codes.rows, codes.latents, row_starts(counts),
          rows_of(codes).index_select(0, order).to(at::kInt), codes.value.index_select(0, order)};
}

void tensor_row_gradients(const RowGradientArgs& args, const RowGradients& out) {
  const LatentCodes& codes = args.codes;
  const at::Tensor latent = at::repeat_interleave(codes.latent_start.diff());
  const at::Tensor norm = args.w_dec_ld.norm(2, 1);
  for_entries(codes.value.numel(), args.w_dec_ld.size(1), [&](int64_t begin, int64_t count) {
    const at::Tensor j = latent.narrow(0, begin, count), row = codes.row.narrow(0, begin, count);
    const at::Tensor z = codes.value.narrow(0, begin, count);
    const at::Tensor g = args.g_bd.index_select(0, row);
    const at::Tensor atoms = args.w_dec_ld.index_select(0, j);
    const at::Tensor dz = (g * atoms).sum(1) + norm.index_select(0, j) * args.l1;
    out.w_dec_ld.index_add_(0, j, g * z.unsqueeze(1));
    out.w_enc_ld.index_add_(0, j, args.x_bd.index_select(0, row) * dz.unsqueeze(1));
    out.b_enc_l.index_add_(0, j, dz);
    if (args.l1 != 0)
      out.w_dec_ld.index_add_(
          0, j, atoms * (args.l1 * z / norm.index_select(0, j).clamp_min(1e-30)).unsqueeze(1));
  });
}

// What is subtracted from w, and the moments after the step.
at::Tensor step_of(const at::Tensor& g, const at::Tensor& decay, const UpdateArgs& args,
                   at::Tensor& m, at::Tensor& v) {
  const auto t = static_cast<double>(args.step);
  if (args.kind == OptimiserKind::sign_sgd) return args.lr * g.sign();
  v = v * decay + g * g * (1 - args.beta2);
  const at::Tensor root = (v / (1 - std::pow(args.beta2, t))).sqrt() + args.eps;
  if (args.kind == OptimiserKind::adam_b1_0) return args.lr * g / root;
  m = m * args.beta1 + g * (1 - args.beta1);
  return args.lr / (1 - std::pow(args.beta1, t)) * m / root;
}

int64_t tensor_update_rows(Parameter& parameter, const at::Tensor& g_raw,
                           const at::Tensor& skipped_l, const UpdateArgs& args) {
  const int64_t rows = parameter.w.size(0);
  if (parameter.w.numel() == 0) return 0;
  const auto by_row = [&](const at::Tensor& t) { return t.defined() ? t.view({rows, -1}) : t; };
  at::Tensor w = by_row(parameter.w), m = by_row(parameter.m), v = by_row(parameter.v);
  at::Tensor g = by_row(g_raw);
  const double scale = args.gradient_scale * args.gradient_scale;
  const at::Tensor bad = (g.to(at::kDouble).square().sum(1) * scale).isfinite().logical_not();
  const at::Tensor wanted = skipped_l.defined() ? skipped_l.ge(0) : at::ones_like(bad);
  const at::Tensor keep = wanted.logical_and(bad.logical_not()).unsqueeze(1);
  if (args.unit_rows) g = g - (g * w).sum(1, true) * w;
  g = g * args.gradient_scale;
  const at::Tensor skipped = skipped_l.defined() ? skipped_l : at::zeros_like(bad, at::kLong);
  const at::Tensor decay =
      at::pow(args.beta2, (skipped + 1).to(at::kDouble)).to(at::kFloat).unsqueeze(1);
  at::Tensor m_next = m, v_next = v;
  at::Tensor w_next = w - step_of(g, decay, args, m_next, v_next);
  if (args.unit_rows) {
    const at::Tensor norm = w_next.norm(2, {1}, true);
    w_next = at::where(norm > 0, w_next / norm, w_next);
  }
  w.copy_(at::where(keep, w_next, w));
  if (m.defined()) m.copy_(at::where(keep, m_next, m));
  if (v.defined()) v.copy_(at::where(keep, v_next, v));
  return bad.logical_and(wanted).sum().item<int64_t>();
}

// The gradients of all sources, [l, d].
RowGradients sum_of_sources(std::span<const GradientSource> sources, const LatentRows& rows) {
  const auto zeros = [&](int64_t count) {
    RowGradients out{at::zeros({count, rows.w_enc.w.size(1)}, rows.w_enc.w.options()), {}, {}};
    out.w_enc_ld = rows.tied() ? out.w_dec_ld : at::zeros_like(out.w_dec_ld);
    out.b_enc_l = at::zeros({count}, rows.w_enc.w.options());
    return out;
  };
  RowGradients total = zeros(rows.w_enc.w.size(0));
  for (const GradientSource& source : sources) {
    const bool all = !source.latent_c.defined();
    const at::Tensor latent =
        all ? at::arange(source.codes.latents, source.codes.latent_start.options())
            : source.latent_c;
    RowGradients part = zeros(source.codes.latents);
    tensor_row_gradients({source.codes, source.x_bd, source.g_bd,
                          rows.w_dec.w.index_select(0, latent), source.l1 / source.factor},
                         part);
    total.w_enc_ld.index_add_(0, latent, part.w_enc_ld, source.factor);
    if (!rows.tied()) total.w_dec_ld.index_add_(0, latent, part.w_dec_ld, source.factor);
    total.b_enc_l.index_add_(0, latent, part.b_enc_l, source.factor);
  }
  return total;
}

RowPassResult tensor_row_pass(std::span<const GradientSource> sources, LatentRows& rows,
                              const UpdateArgs& args) {
  RowGradients g = sum_of_sources(sources, rows);
  const auto square_of = [](const at::Tensor& t) {
    const at::Tensor square = t.to(at::kDouble).square();
    return t.dim() > 1 ? square.sum(1) : square;
  };
  at::Tensor square = square_of(g.w_enc_ld) + square_of(g.b_enc_l);
  if (!rows.tied()) square = square + square_of(g.w_dec_ld);
  const double scale = args.gradient_scale * args.gradient_scale;
  const at::Tensor sound = (square * scale).isfinite();
  RowPassResult out;
  out.skipped = sound.numel() - sound.sum().item<int64_t>();
  out.square = at::where(sound, square, at::zeros_like(square)).sum().item<double>();
  const at::Tensor bias = at::where(sound, g.b_enc_l, at::zeros_like(g.b_enc_l));
  out.b_dec_d = -rows.w_enc.w.to(at::kDouble).t().mv(bias.to(at::kDouble));
  // A latent of which one gradient is not finite is left alone whole.
  const at::Tensor bad = sound.logical_not();
  for (at::Tensor* t : {&g.w_enc_ld, &g.w_dec_ld})
    t->masked_fill_(bad.unsqueeze(1), std::numeric_limits<float>::quiet_NaN());
  g.b_enc_l.masked_fill_(bad, std::numeric_limits<float>::quiet_NaN());
  at::Tensor skipped;
  if (rows.last_step_l.defined()) {
    const at::Tensor touched = square.gt(0).logical_and(sound);
    skipped =
        at::where(touched, args.step - 1 - rows.last_step_l, at::full_like(rows.last_step_l, -1));
    rows.last_step_l.masked_fill_(touched, args.step);
  }
  UpdateArgs plain = args;
  plain.unit_rows = false;
  if (!rows.tied()) tensor_update_rows(rows.w_dec, g.w_dec_ld, skipped, args);
  tensor_update_rows(rows.w_enc, g.w_enc_ld, skipped, plain);
  tensor_update_rows(rows.b_enc, g.b_enc_l, skipped, plain);
  return out;
}

}  // namespace

const KernelSet kTensorKernels = {"tensor",
                                  "plain tensor operations, any device",
                                  tensor_topk,
                                  tensor_above,
                                  tensor_kth,
                                  tensor_keep,
                                  tensor_decode,
                                  tensor_by_latent,
                                  tensor_row_gradients,
                                  tensor_update_rows,
                                  tensor_row_pass};

}  // namespace megadict
