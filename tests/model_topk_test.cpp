// The sharded TopK against sorting the whole row: ties, truncated lists (narrow candidate widths
// and all winners on one shard), padding rows, shards smaller than k.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/range.h"
#include "comm/mesh.h"
#include "kernels/kernel_set.h"
#include "model/topk.h"
#include "support/mpi_main.h"

namespace megadict {
namespace {

struct Problem {
  const char* name;
  int64_t n, k, slot, padding, width;
  bool ties, one_shard;
};

at::Tensor values_of(const Problem& p, int64_t rows) {
  at::Generator generator = at::detail::createCPUGenerator(7);
  at::Tensor v = p.ties ? at::randint(-2, 3, {rows, p.n}, generator).to(at::kFloat)
                        : at::randn({rows, p.n}, generator);
  // All winners among the last latents, so on the last shard.
  if (p.one_shard) v.narrow(1, p.n - p.n / 7, p.n / 7).add_(10);
  return v;
}

at::Tensor expected(const at::Tensor& v, int64_t k, int64_t real_rows) {
  const at::Tensor order = std::get<1>(v.sort(/*stable=*/true, 1, /*descending=*/true));
  at::Tensor mask = at::zeros_like(v, at::kBool);
  mask.scatter_(1, order.narrow(1, 0, std::min(k, v.size(1))), true);
  mask.narrow(0, real_rows, v.size(0) - real_rows).fill_(false);
  return (v * mask).relu();
}

at::Tensor dense(const Codes& codes) {
  at::Tensor out = at::zeros({codes.rows, codes.latents});
  const at::Tensor row = at::repeat_interleave(codes.row_start.diff());
  return out.index_put_({row, codes.latent.to(at::kLong)}, codes.value);
}

class ShardedTopk : public testing::TestWithParam<Problem> {};

TEST_P(ShardedTopk, EqualsSortingTheWholeRow) {
  const Problem p = GetParam();
  const int shards = test_world().size(), me = test_world().rank();
  std::unique_ptr<Communicator> feature = test_world().split(0, me, "feature");
  const int64_t rows = shards * p.slot, real = std::max<int64_t>(rows - p.padding, 0);
  const at::Tensor v = values_of(p, rows);
  const Range mine = shard_of(p.n, shards, me);
  // Pre-activations as they are: identity rows times the values as "weights".
  const at::Tensor x = at::eye(rows);
  const at::Tensor weights = v.narrow(1, mine.begin, mine.size()).t().contiguous();
  const at::Tensor bias = at::zeros({mine.size()});
  for (const KernelSet& set : all_kernel_sets()) {
    SelectArgs args{p.k, p.slot, real, p.width, {}};
    for (int f = 0; f < shards; ++f) args.shard_latents.push_back(shard_of(p.n, shards, f).size());
    const Codes codes = select_topk(*feature, set.topk({x, weights, bias}, p.k), args);
    EXPECT_TRUE(at::equal(dense(codes), expected(v, p.k, real).narrow(1, mine.begin, mine.size())))
        << set.name << " " << p.name << " at " << shards << " shards";
  }
}

INSTANTIATE_TEST_SUITE_P(Problems, ShardedTopk,
                         testing::Values(Problem{"plain", 100, 8, 5, 0, 0, false, false},
                                         Problem{"ties", 100, 8, 5, 2, 0, true, false},
                                         Problem{"narrow", 100, 8, 5, 1, 1, false, false},
                                         Problem{"narrow_ties", 101, 8, 5, 0, 1, true, false},
                                         Problem{"one_shard", 131, 16, 3, 0, 0, false, true},
                                         Problem{"one_shard_narrow", 131, 16, 3, 1, 2, false, true},
                                         Problem{"few_latents", 7, 7, 2, 0, 0, true, false},
                                         Problem{"k_is_n", 12, 12, 1, 0, 1, false, false},
                                         Problem{"one_latent", 6, 1, 1, 0, 1, true, false}),
                         [](const auto& row) { return row.param.name; });

// ---- planted worst cases -----------------------------------------------------------------------

// Where a row's best latents lie.
enum class Plant {
  one_shard,
  own_shard,
  some_rows,
  two_shards,
  ties_at_the_threshold,
  all_equal,
  negative
};

struct Planted {
  const char* name;
  Plant plant;
  int64_t n, k, slot, padding, width;
};

// Latents of a shard get `value` more, the first `count` of them.
void raise(at::Tensor row, const Range& shard, int64_t count, double value) {
  row.narrow(0, shard.begin, std::min(count, shard.size())).add_(value);
}

// Rows of one data row of the mesh; others get others.
at::Tensor planted_values(const Planted& p, const Mesh& mesh) {
  const int shards = mesh.feature_size();
  const int64_t rows = shards * p.slot;
  at::Generator generator =
      at::detail::createCPUGenerator(static_cast<uint64_t>(11 + mesh.data_index));
  at::Tensor v = at::randn({rows, p.n}, generator);
  if (p.plant == Plant::all_equal) v.fill_(1.5);
  if (p.plant == Plant::negative) v.sub_(8);
  for (int64_t i = 0; i < rows; ++i) {
    const auto shard = [&](int64_t index) {
      return shard_of(p.n, shards, static_cast<int>(index % shards));
    };
    at::Tensor row = v[i];
    switch (p.plant) {
      case Plant::one_shard:  // the last shard of the first data row, ...
        raise(row, shard(shards - 1 + mesh.data_index), p.k, 20);
        break;
      case Plant::own_shard:
      case Plant::negative:  // a few of the best are positive
        raise(row, shard(i), p.k, p.plant == Plant::negative ? 7 : 20);
        break;
      case Plant::some_rows:
        if (i % 3 == mesh.data_index) raise(row, shard(i / 3), p.k, 20);
        break;
      case Plant::two_shards:
        raise(row, shard(i), (p.k + 1) / 2, 20);
        raise(row, shard(i + 1), (p.k + 1) / 2, 20);
        break;
      case Plant::ties_at_the_threshold:  // k - 2 of one shard, then equal ones everywhere
        row.fill_(2);
        raise(row, shard(i), p.k - 2, 3);
        break;
      case Plant::all_equal:
        break;
    }
  }
  return v;
}

// How many of a row's k best (v descending, latent ascending) each shard holds: [rows, shards].
at::Tensor best_by_shard(const at::Tensor& v, int64_t k, int shards) {
  const at::Tensor order = std::get<1>(v.sort(/*stable=*/true, 1, /*descending=*/true));
  at::Tensor mask = at::zeros_like(v);
  mask.scatter_(1, order.narrow(1, 0, k), 1.0);
  std::vector<at::Tensor> out;
  for (int f = 0; f < shards; ++f) {
    const Range shard = shard_of(v.size(1), shards, f);
    out.push_back(mask.narrow(1, shard.begin, shard.size()).sum(1));
  }
  return at::stack(out, 1).to(at::kLong);
}

class PlantedTopk : public testing::TestWithParam<Planted> {};

// Selection by brute force, and every byte of the repair round: 4 (k - c) (F - 1) for a truncated
// row of one's own, 8 for a foreign one, nothing where no row is truncated.
TEST_P(PlantedTopk, EqualsBruteForceAndMovesTheFormulasBytes) {
  const Planted& p = GetParam();
  for (int data = 1; data <= test_world().size(); ++data) {
    if (test_world().size() % data != 0) continue;
    const Mesh mesh = make_mesh(test_world(), {data, test_world().size() / data});
    const int shards = mesh.feature_size(), me = mesh.feature_index;
    const int64_t rows = shards * p.slot, real = rows - p.padding;
    const at::Tensor v = planted_values(p, mesh);
    const Range mine = shard_of(p.n, shards, me);
    SelectArgs args{p.k, p.slot, real, p.width, {}};
    for (int f = 0; f < shards; ++f) args.shard_latents.push_back(shard_of(p.n, shards, f).size());

    const int64_t c = p.width > 0 ? p.width : candidate_width(p.k, shards);
    const at::Tensor held = best_by_shard(v, p.k, shards);
    std::vector<int64_t> truncated(static_cast<size_t>(shards), 0);  // by owner
    int64_t by_several = 0;
    for (int64_t i = 0; i < real && shards > 1; ++i) {
      int64_t of = 0;
      for (int f = 0; f < shards; ++f)
        of += c < std::min(p.k, args.shard_latents[static_cast<size_t>(f)]) &&
              held[i][f].item<int64_t>() >= c;
      truncated[static_cast<size_t>(i / p.slot)] += of > 0;
      by_several += of > 1;
    }
    int64_t foreign = 0;
    for (int f = 0; f < shards; ++f) foreign += f == me ? 0 : truncated[static_cast<size_t>(f)];
    const int64_t own = truncated[static_cast<size_t>(me)];
    const std::string where = fmt::format("{} on {}", p.name, mesh.name());
    if (shards > 1 && c < std::min(p.k, p.n / shards)) {
      EXPECT_GT(own + foreign, 0) << "the case is no worst case: " << where;
      EXPECT_TRUE(by_several > 0 || p.plant != Plant::two_shards) << where;
    }

    const at::Tensor weights = v.narrow(1, mine.begin, mine.size()).t().contiguous();
    for (const KernelSet& set : all_kernel_sets()) {
      const Candidates candidates =
          set.topk({at::eye(rows), weights, at::zeros({mine.size()})}, p.k);
      mesh.feature->reset_counts();
      use_kernels(&set);
      const Codes codes = select_topk(*mesh.feature, candidates, args);
      use_kernels(nullptr);
      EXPECT_TRUE(
          at::equal(dense(codes), expected(v, p.k, real).narrow(1, mine.begin, mine.size())))
          << set.name << " " << where;
      const auto bytes = [&](const char* name) {
        const auto found = mesh.feature->counts().find(name);
        return found == mesh.feature->counts().end() ? int64_t{-1} : found->second.bytes;
      };
      if (shards == 1) {
        EXPECT_TRUE(mesh.feature->counts().empty()) << where;
        continue;
      }
      const bool repairs = own + foreign > 0;
      EXPECT_EQ(bytes("topk candidates"), 4 * p.slot * c * (shards - 1)) << where;
      EXPECT_EQ(bytes("topk thresholds"), 8 * p.slot * (shards - 1)) << where;
      EXPECT_EQ(bytes("topk repair"), repairs ? 4 * (p.k - c) * (shards - 1) * own : -1) << where;
      EXPECT_EQ(bytes("topk repaired thresholds"), repairs ? 8 * foreign : -1) << where;
    }
  }
}

std::vector<Planted> planted_cases() {
  std::vector<Planted> out;
  const auto add = [&](const char* name, Plant plant) {
    // Narrower than k by little and by much; the formula's own width, below k from 2 shards on;
    // shards smaller than k at 3 shards and more.
    for (const int64_t width : {1, 3, 7}) out.push_back({name, plant, 67, 8, 5, 2, width});
    out.push_back({name, plant, 700, 96, 3, 1, 0});
    out.push_back({name, plant, 20, 8, 3, 0, 2});
  };
  add("one_shard", Plant::one_shard);
  add("own_shard", Plant::own_shard);
  add("some_rows", Plant::some_rows);
  add("ties_at_the_threshold", Plant::ties_at_the_threshold);
  add("all_equal", Plant::all_equal);
  add("negative", Plant::negative);
  for (const int64_t width : {1, 3})
    out.push_back({"two_shards", Plant::two_shards, 67, 8, 5, 2, width});
  out.push_back({"two_shards", Plant::two_shards, 131, 19, 4, 0, 7});
  return out;
}

INSTANTIATE_TEST_SUITE_P(Cases, PlantedTopk, testing::ValuesIn(planted_cases()),
                         [](const auto& row) {
                           const Planted& p = row.param;
                           return fmt::format("{}_n{}_width{}", p.name, p.n, p.width);
                         });

TEST(CandidateWidth, FollowsTheFormula) {
  EXPECT_EQ(candidate_width(32, 1), 32);
  EXPECT_EQ(candidate_width(32, 4), 29);
  EXPECT_EQ(candidate_width(32, 8), 20);
  EXPECT_EQ(candidate_width(32, 16), 15);
  EXPECT_EQ(candidate_width(32, 32), 11);
  EXPECT_EQ(candidate_width(32, 64), 9);
}

}  // namespace
}  // namespace megadict
