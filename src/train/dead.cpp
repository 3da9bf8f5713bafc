#include "train/dead.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/tensor_views.h"

namespace megadict {

namespace {

at::Tensor bit_values(const at::Tensor& like) {
  return at::tensor({1, 2, 4, 8, 16, 32, 64, 128}, at::kInt).to(like.device());
}

at::Tensor to_bits(const at::Tensor& flags_l) {
  const int64_t bytes = ceil_div(flags_l.size(0), 8);
  at::Tensor padded = at::zeros({bytes * 8}, flags_l.options().dtype(at::kInt));
  padded.narrow(0, 0, flags_l.size(0)).copy_(flags_l);
  return (padded.view({bytes, 8}) * bit_values(flags_l)).sum(1).to(at::kByte);
}

at::Tensor from_bits(const at::Tensor& bytes, int64_t count) {
  const at::Tensor bits = bytes.to(at::kInt).unsqueeze(1).bitwise_and(bit_values(bytes)).ne(0);
  return bits.flatten().narrow(0, 0, count);
}

}  // namespace

void mark_fired(const Codes& codes, at::Tensor& fired_l) {
  if (codes.nnz() > 0) fired_l.index_fill_(0, codes.latent.to(at::kLong), true);
}

void count_fired(const Mesh& mesh, const at::Tensor& fired_l, int64_t batch_rows,
                 TrainState& state) {
  at::Tensor fired = fired_l;
  if (mesh.data_size() > 1) {
    const at::Tensor mine = to_bits(fired_l);
    at::Tensor all = at::empty({mesh.data_size(), mine.size(0)}, mine.options());
    mesh.data->all_gather(view_of(mine), view_of(all), "fired latents");
    at::Tensor merged = all[0];
    for (int64_t d = 1; d < mesh.data_size(); ++d) merged = merged.bitwise_or(all[d]);
    fired = from_bits(merged, fired_l.size(0));
  }
  state.tokens_since_fired_l.add_(batch_rows).masked_fill_(fired, 0);
}

at::Tensor dead_mask(const TrainState& state, int64_t window_tokens) {
  return state.tokens_since_fired_l.ge(window_tokens);
}

DeadCounts count_dead(const Mesh& mesh, const TrainState& state, int64_t window_tokens) {
  DeadCounts out;
  std::array<int64_t, out.since_fired.size() - 1> edges;
  for (size_t i = 0; i < edges.size(); ++i) edges[i] = i == 0 ? 1 : 10 * edges[i - 1];
  const at::Tensor& since = state.tokens_since_fired_l;
  const at::Tensor bins = at::bucketize(since, at::tensor(edges, at::kLong).to(since.device()),
                                        /*out_int32=*/false, /*right=*/true);
  const at::Tensor counts =
      at::bincount(bins, {}, static_cast<int64_t>(out.since_fired.size())).to(at::kCPU);
  std::array<int64_t, out.since_fired.size() + 1> all;
  std::copy_n(counts.const_data_ptr<int64_t>(), out.since_fired.size(), all.begin());
  all.back() = dead_mask(state, window_tokens).sum().item<int64_t>();
  mesh.feature->all_reduce(view_of(all.data(), static_cast<int64_t>(all.size())), ReduceOp::sum,
                           "dead latents");
  std::copy_n(all.begin(), out.since_fired.size(), out.since_fired.begin());
  if (state.tokens >= window_tokens) out.dead = all.back();
  return out;
}

}  // namespace megadict
