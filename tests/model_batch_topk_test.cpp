// The selection over a batch, on every mesh of the ranks at hand, against sorting all of its
// values: ties across ranks, rows that hold far more or less than their share, too few positive
// values, batches smaller than the data axis.
#include "model/batch_topk.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/range.h"
#include "comm/mesh.h"
#include "kernels/vector_ops.h"
#include "support/mpi_main.h"

namespace megadict {
namespace {

struct Problem {
  const char* name;
  int64_t rows, n, k;
  at::Tensor (*values)(int64_t rows, int64_t n);
};

at::Tensor normal(int64_t rows, int64_t n) {
  at::Generator generator = at::detail::createCPUGenerator(7);
  return at::randn({rows, n}, generator);
}

at::Tensor integers(int64_t rows, int64_t n) {
  at::Generator generator = at::detail::createCPUGenerator(8);
  return at::randint(-2, 4, {rows, n}, generator).to(at::kFloat);
}

// Every third row beats all others.
at::Tensor large_rows(int64_t rows, int64_t n) {
  at::Tensor v = normal(rows, n);
  return v + at::arange(rows).remainder(3).eq(1).unsqueeze(1) * 10;
}

at::Tensor large_rows_of_integers(int64_t rows, int64_t n) {
  return integers(rows, n) + at::arange(rows).remainder(3).eq(1).unsqueeze(1) * 2;
}

at::Tensor one_row_alone(int64_t rows, int64_t n) {
  at::Tensor v = normal(rows, n).abs().neg() - 1;
  v[rows / 2].neg_();
  return v;
}

at::Tensor few_positive(int64_t rows, int64_t n) {
  return normal(rows, n) - 2.2;
}

at::Tensor none_positive(int64_t rows, int64_t n) {
  return normal(rows, n).abs().neg();
}

at::Tensor all_equal(int64_t rows, int64_t n) {
  return at::full({rows, n}, 0.75f);
}

struct Expected {
  at::Tensor codes;  // [rows, n]
  double least = 0;
};

Expected by_sorting(const at::Tensor& v, int64_t k) {
  const at::Tensor flat = v.flatten();
  const at::Tensor order = std::get<1>(flat.sort(/*stable=*/true, 0, /*descending=*/true));
  at::Tensor mask = at::zeros_like(flat, at::kBool);
  mask.index_fill_(0, order.narrow(0, 0, std::min(v.size(0) * k, flat.numel())), true);
  Expected out{(flat * mask).relu().view_as(v)};
  const at::Tensor kept = out.codes.masked_select(out.codes.gt(0));
  if (kept.numel() > 0) out.least = kept.min().item<double>();
  return out;
}

at::Tensor dense(const Codes& codes) {
  at::Tensor out = at::zeros({codes.rows, codes.latents});
  const at::Tensor row = at::repeat_interleave(codes.row_start.diff());
  return out.index_put_({row, codes.latent.to(at::kLong)}, codes.value);
}

template <class Test>
void on_every_mesh(Test&& test) {
  Communicator& world = test_world();
  for (int features = 1; features <= world.size(); ++features)
    if (world.size() % features == 0) test(make_mesh(world, {world.size() / features, features}));
}

class SelectBatch : public testing::TestWithParam<Problem> {};

TEST_P(SelectBatch, EqualsSortingTheWholeBatch) {
  const Problem p = GetParam();
  const at::Tensor v = p.values(p.rows, p.n);
  const Expected want = by_sorting(v, p.k);
  on_every_mesh([&](const Mesh& mesh) {
    const Range rows = shard_of(p.rows, mesh.data_size(), mesh.data_index);
    const Range latents = shard_of(p.n, mesh.feature_size(), mesh.feature_index);
    const auto mine = [&](const at::Tensor& all) {
      return all.narrow(0, rows.begin, rows.size()).narrow(1, latents.begin, latents.size());
    };
    // Pre-activations as they are: identity rows times the values as "weights".
    const at::Tensor x = at::eye(rows.size()), weights = mine(v).t().contiguous();
    const at::Tensor bias = at::zeros({latents.size()});
    for (const KernelSet& set : all_kernel_sets()) {
      const EncodeArgs input{x, weights, bias};
      const BatchSelection got =
          select_batch_topk(*mesh.world, input, set.topk(input, list_width(p.k)),
                            {p.k, p.rows, rows.begin, p.n, latents.begin});
      const std::string where = fmt::format("{} {} on {}", set.name, p.name, mesh.name());
      EXPECT_TRUE(at::equal(dense(got.codes), mine(want.codes))) << where;
      EXPECT_EQ(got.codes.row_start.size(0), rows.size() + 1) << where;
      EXPECT_EQ(got.codes.nnz(), mine(want.codes).gt(0).sum().item<int64_t>()) << where;
      EXPECT_EQ(got.least, want.least) << where;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Problems, SelectBatch,
    testing::Values(Problem{"plain", 40, 100, 8, normal}, Problem{"odd", 37, 101, 3, normal},
                    Problem{"ties", 40, 101, 8, integers}, Problem{"ties_odd", 31, 97, 5, integers},
                    Problem{"large_rows", 40, 101, 6, large_rows},
                    Problem{"large_rows_ties", 41, 101, 6, large_rows_of_integers},
                    Problem{"large_rows_many", 40, 101, 30, large_rows},
                    Problem{"one_row_alone", 13, 101, 4, one_row_alone},
                    Problem{"one_row_alone_all_of_it", 13, 101, 30, one_row_alone},
                    Problem{"few_positive", 40, 101, 8, few_positive},
                    Problem{"none_positive", 9, 50, 4, none_positive},
                    Problem{"all_equal", 17, 53, 4, all_equal},
                    Problem{"all_equal_all_kept", 5, 12, 12, all_equal},
                    Problem{"everything_is_kept", 12, 14, 14, normal},
                    Problem{"one_row", 1, 60, 7, normal}, Problem{"two_rows", 2, 60, 7, integers},
                    Problem{"few_latents", 30, 7, 2, normal},
                    Problem{"one_each", 8, 6, 1, integers}),
    [](const auto& row) { return row.param.name; });

// A screen's values are another product's, rounded otherwise than the exact encode's: what is
// encoded again must have the screen's, or entries next to the threshold are lost or swapped. Rows
// of the dictionary come in groups that differ by less than rounding, pre-activations are small
// beside their terms, and some rows hold more codes than they list.
TEST(SelectBatchScreened, EqualsSortingTheScreensValues) {
  constexpr int64_t kRows = 45, kLatents = 410, kWidth = 130, kActive = 6;
  at::Tensor x = normal(kRows, kWidth), w = normal(kLatents, kWidth);
  x += 20 * normal(1, kWidth);
  w -= x.mean(0).unsqueeze(0) * 0.02;
  for (int64_t j = 0; j < kLatents; ++j) w[j] = w[j / 41 * 41] * (1 + 2e-7 * (j % 41));
  x.narrow(0, 3, 4).mul_(2);
  const at::Tensor bias = at::zeros({kLatents});
  at::Tensor v = at::empty({kRows, kLatents});
  for (int64_t row = 0; row < kRows; ++row)
    for (int64_t j = 0; j < kLatents; ++j)
      v[row][j] = static_cast<float>(dot(x.const_data_ptr<float>() + row * kWidth,
                                         w.const_data_ptr<float>() + j * kWidth, kWidth));
  const Expected want = by_sorting(v, kActive);
  on_every_mesh([&](const Mesh& mesh) {
    const Range rows = shard_of(kRows, mesh.data_size(), mesh.data_index);
    const Range latents = shard_of(kLatents, mesh.feature_size(), mesh.feature_index);
    const at::Tensor my_x = x.narrow(0, rows.begin, rows.size()),
                     my_w = w.narrow(0, latents.begin, latents.size()),
                     my_bias = bias.narrow(0, latents.begin, latents.size());
    const EncodeArgs input{my_x, my_w, my_bias};
    for (const ScreenProduct& product : all_screen_products()) {
      Screen screen(my_w, product.kind);
      const BatchSelection got =
          select_batch_topk(*mesh.world, input, screen.topk(input, list_width(kActive)),
                            {kActive, kRows, rows.begin, kLatents, latents.begin, &screen});
      const at::Tensor mine =
          want.codes.narrow(0, rows.begin, rows.size()).narrow(1, latents.begin, latents.size());
      EXPECT_TRUE(at::equal(dense(got.codes), mine)) << product.name << " on " << mesh.name();
      EXPECT_EQ(got.least, want.least) << product.name << " on " << mesh.name();
    }
  });
}

// Lists of all latents leave nothing to look for again; a row of which all is kept does.
TEST(SelectBatchRounds, ASecondOneOnlyWhereAListMayBeTooShort) {
  Communicator& world = test_world();
  const auto again = [&](const at::Tensor& v, int64_t k) {
    bool made = false;
    on_every_mesh([&](const Mesh& mesh) {
      const Range rows = shard_of(v.size(0), mesh.data_size(), mesh.data_index);
      const Range latents = shard_of(v.size(1), mesh.feature_size(), mesh.feature_index);
      const at::Tensor weights = v.narrow(0, rows.begin, rows.size())
                                     .narrow(1, latents.begin, latents.size())
                                     .t()
                                     .contiguous();
      const at::Tensor x = at::eye(rows.size()), bias = at::zeros({latents.size()});
      world.reset_counts();
      select_batch_topk(world, {x, weights, bias},
                        kernels_for(x).topk({x, weights, bias}, list_width(k)),
                        {k, v.size(0), rows.begin, v.size(1), latents.begin});
      made = world.counts().contains("batchtopk values again");
    });
    return made;
  };
  EXPECT_FALSE(again(normal(20, 12), 6));
  at::Tensor v = at::zeros({20, 120});
  v.narrow(1, 0, 3).fill_(1).add_(normal(20, 3).abs());
  EXPECT_FALSE(again(v, 3));
  v[7].narrow(0, 0, 120).fill_(9);
  EXPECT_TRUE(again(v, 3));
}

}  // namespace
}  // namespace megadict
