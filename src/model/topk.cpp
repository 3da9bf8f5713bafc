#include "model/topk.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernel_set.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kNever = std::numeric_limits<float>::infinity();

struct Thresholds {
  at::Tensor tau;  // f32 [rows]
  at::Tensor cut;  // i64 [rows]
};

// Columns [first, first + width) of the candidates, padded with -inf.
at::Tensor places(const at::Tensor& value, int64_t first, int64_t width) {
  at::Tensor out = at::full({value.size(0), width}, kNone, value.options());
  const int64_t real = std::clamp<int64_t>(value.size(1) - first, 0, width);
  if (real > 0) out.narrow(1, 0, real).copy_(value.narrow(1, first, real));
  return out;
}

// Rows where some shard's last sent value is selected although that shard holds more.
at::Tensor truncated_rows(const at::Tensor& lists_psc, const Thresholds& own,
                          const SelectArgs& args) {
  const int64_t parts = lists_psc.size(0), c = lists_psc.size(2);
  at::Tensor truncated = at::zeros({lists_psc.size(1)}, own.cut.options().dtype(at::kBool));
  for (int64_t part = 0; part < parts; ++part) {
    if (c >= std::min(args.k, args.shard_latents[static_cast<size_t>(part)])) continue;
    const at::Tensor last = lists_psc[part].select(1, c - 1);
    const at::Tensor tied = last.eq(own.tau).logical_and(own.cut >= part * c + c - 1);
    truncated.logical_or_(last.gt(own.tau).logical_or(tied).logical_and(last.ne(kNone)));
  }
  return truncated;
}

// (tau, cut) as two 32-bit words a row, so that one message carries both.
at::Tensor pack(const Thresholds& t) {
  return at::stack({t.tau.view(at::kInt), t.cut.to(at::kInt)}, 1).contiguous();
}

Thresholds unpack(const at::Tensor& words) {
  return {words.select(1, 0).contiguous().view(at::kFloat),
          words.select(1, 1).to(at::kLong).bitwise_and(0xFFFFFFFFll)};
}

// Second round for the rows in `rows` (ascending, the same on every shard): the owners get places
// c .. k - 1 too and decide on full lists. Collective over feature.
void repair(Communicator& feature, const Candidates& mine, const at::Tensor& lists_psc,
            const at::Tensor& rows, const SelectArgs& args, Thresholds& all) {
  const int64_t shards = feature.size(), me = feature.rank(), c = lists_psc.size(2);
  const int64_t rest = args.k - c;
  const at::Tensor owner = rows.div(args.slot, "floor");
  std::vector<int64_t> per_owner(static_cast<size_t>(shards));
  const at::Tensor counts = at::bincount(owner, {}, shards).to(at::kCPU);
  for (int64_t f = 0; f < shards; ++f)
    per_owner[static_cast<size_t>(f)] = counts[f].item<int64_t>();
  const int64_t own_count = per_owner[static_cast<size_t>(me)];

  const at::Tensor send = places(mine.value.index_select(0, rows), c, rest);
  at::Tensor recv = at::empty({shards, own_count, rest}, send.options());
  std::vector<int64_t> send_counts, recv_counts(static_cast<size_t>(shards), own_count * rest);
  for (int64_t count : per_owner) send_counts.push_back(count * rest);
  feature.all_to_all_v(view_of(send), send_counts, view_of(recv), recv_counts, "topk repair");

  const at::Tensor own_rows = rows.masked_select(owner.eq(me)) - me * args.slot;
  const at::Tensor lists = at::cat({lists_psc.index_select(1, own_rows), recv}, 2).contiguous();
  Thresholds own;
  kernels_for(lists).kth(lists, args.k, own.tau, own.cut);

  const at::Tensor answer = pack(own).repeat({shards, 1}).contiguous();
  at::Tensor answers = at::empty({rows.size(0), 2}, answer.options());
  std::vector<int64_t> answer_counts(static_cast<size_t>(shards), own_count * 2), got_counts;
  for (int64_t count : per_owner) got_counts.push_back(count * 2);
  feature.all_to_all_v(view_of(answer), answer_counts, view_of(answers), got_counts,
                       "topk repaired thresholds");
  const Thresholds repaired = unpack(answers);
  all.tau.index_copy_(0, rows, repaired.tau);
  // Positions were shard * k + place here; shift so that shard * c + place compares alike.
  all.cut.index_copy_(0, rows, repaired.cut - me * (args.k - c));
}

}  // namespace

int64_t candidate_width(int64_t k, int shards) {
  const double share = static_cast<double>(k) / shards;
  return std::min(k, static_cast<int64_t>(std::ceil(share + 6 * std::sqrt(share) + 4)));
}

Codes select_topk(Communicator& feature, const Candidates& mine, const SelectArgs& args) {
  const KernelSet& kernels = kernels_for(mine.value);
  const int64_t rows = mine.value.size(0), shards = feature.size(), me = feature.rank();
  const int64_t latents = args.shard_latents[static_cast<size_t>(me)];
  const auto options = mine.value.options();
  Thresholds all{at::full({rows}, kNone, options),
                 at::full({rows}, kCutAll, options.dtype(at::kLong))};
  int64_t c = 0;
  if (shards > 1) {
    c = args.width > 0 ? args.width : candidate_width(args.k, static_cast<int>(shards));
    const at::Tensor send = places(mine.value, 0, c);
    at::Tensor lists_psc = at::empty({shards, args.slot, c}, options);
    feature.all_to_all(view_of(send), view_of(lists_psc), "topk candidates");
    Thresholds own;
    kernels.kth(lists_psc, args.k, own.tau, own.cut);
    const int64_t real = std::clamp<int64_t>(args.real_rows - me * args.slot, 0, args.slot);
    at::Tensor truncated = truncated_rows(lists_psc, own, args);
    truncated.narrow(0, real, args.slot - real).fill_(false);
    own.cut.masked_fill_(truncated, kCutTruncated);
    at::Tensor words = at::empty({rows, 2}, options.dtype(at::kInt));
    const at::Tensor own_words = pack(own);
    feature.all_gather(view_of(own_words), view_of(words), "topk thresholds");
    all = unpack(words);
    const at::Tensor to_repair = all.cut.eq(kCutTruncated).nonzero().squeeze(1);
    if (to_repair.size(0) > 0) repair(feature, mine, lists_psc, to_repair, args, all);
  }
  all.tau.narrow(0, args.real_rows, rows - args.real_rows).fill_(kNever);
  all.cut.narrow(0, args.real_rows, rows - args.real_rows).fill_(-1);
  return kernels.keep(mine, latents, all.tau, all.cut, me * c);
}

}  // namespace megadict
