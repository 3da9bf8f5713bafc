// Evaluation on every mesh against the formula in fp64.
#include "eval/evaluate.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "comm/mesh.h"
#include "data/shard_writer.h"
#include "io/file.h"
#include "support/mpi_main.h"
#include "support/plain_dictionary.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::random_dictionary;
using test::random_rows;
using test::reconstruct;
using test::TempFolder;

constexpr int64_t kRows = 301;  // divides by no mesh

void write_rows(const std::string& folder, const at::Tensor& x_bd) {
  make_folders(folder);
  ShardWriter writer(folder + "/a.h5", {x_bd.size(1), DType::f32, "m", "h", "t", 0}, 64);
  writer.append({x_bd.const_data_ptr<float>(), x_bd.size(0)});
  writer.finish();
}

SavedDictionary shard_of_saved(const SavedDictionary& saved, const Mesh& mesh) {
  SavedDictionary out = saved;
  Dictionary& dictionary = out.dictionary;
  dictionary.latents = shard_of(dictionary.n, mesh.feature_size(), mesh.feature_index);
  for (at::Tensor* t : {&dictionary.w_enc_ld, &dictionary.w_dec_ld, &dictionary.b_enc_l})
    *t = t->narrow(0, dictionary.latents.begin, dictionary.latents.size()).contiguous();
  if (dictionary.tied()) dictionary.w_dec_ld = dictionary.w_enc_ld;
  return out;
}

MetricReport by_formula(const SavedDictionary& saved, const at::Tensor& x_bd) {
  const auto [z, x_hat] = reconstruct(saved, x_bd);
  const at::Tensor norm = saved.dictionary.w_dec_ld.to(at::kDouble).norm(2, 1);
  const at::Tensor near = x_hat.to(at::kFloat).contiguous();
  const at::Tensor l0 = (z > 0).sum(1).contiguous(), fired = (z > 0).sum(0).contiguous();
  const at::Tensor l1 = (at::mv(z, norm) / saved.normalization.scale).contiguous();
  const int64_t n = saved.dictionary.n;
  MetricSums sums(saved.dictionary.d, n, {0, n},
                  mean_row(x_bd.const_data_ptr<float>(), kRows, x_bd.size(1)));
  sums.add_rows(x_bd.const_data_ptr<float>(), near.const_data_ptr<float>(), kRows,
                l0.const_data_ptr<int64_t>(), l1.const_data_ptr<double>());
  sums.add_fired({fired.const_data_ptr<int64_t>(), static_cast<size_t>(n)});
  sums.set_decoder_norms({norm.const_data_ptr<double>(), static_cast<size_t>(n)});
  return finish(totals_of(sums));
}

template <class Test>
void on_every_mesh(Test&& test) {
  Communicator& world = test_world();
  for (int features = 1; features <= world.size(); ++features)
    if (world.size() % features == 0) test(make_mesh(world, {world.size() / features, features}));
}

void expect_near(const MetricReport& got, const MetricReport& want, double tolerance) {
  for (size_t i = 0; i < want.values.size(); ++i) {
    const auto& [metric, value] = want.values[i];
    if (metric->name == "explained_variance_legacy") continue;
    EXPECT_NEAR(got.values[i].value, value, tolerance * std::max(1.0, std::abs(value)))
        << metric->name;
  }
  EXPECT_EQ(got.density_histogram, want.density_histogram);
}

TEST(Evaluate, EveryMeshAndBatchGivesTheFormula) {
  const TempFolder folder;  // each rank its own copy
  for (const char* activation : {"topk", "relu", "batchtopk"})
    for (const char* decoder : {"linear", "tied"}) {
      const SavedDictionary saved = random_dictionary(activation, decoder);
      const at::Tensor x = random_rows(saved, kRows, 11);
      const std::string at = folder / (std::string(activation) + decoder);
      write_rows(at, x);
      const ShardIndex data = ShardIndex::open(at);
      const MetricReport want = by_formula(saved, x);
      on_every_mesh([&](const Mesh& mesh) {
        const SavedDictionary mine = shard_of_saved(saved, mesh);
        for (int64_t batch : {64, 4096}) {
          SCOPED_TRACE(std::string(activation) + " " + decoder + " on " + mesh.name());
          expect_near(evaluate(mesh, mine.dictionary, mine.normalization, data, {0, batch}), want,
                      1e-5);
        }
      });
    }
}

// Every number, those by batches included; the l0 and fire counts of equal codes are equal.
void expect_same(const MetricReport& got, const MetricReport& want) {
  for (size_t i = 0; i < want.values.size(); ++i) {
    const double value = want.values[i].value;
    EXPECT_NEAR(got.values[i].value, value, 1e-12 * std::max(1.0, std::abs(value)))
        << want.values[i].metric->name;
  }
  for (size_t i = 0; i < want.peers.size(); ++i) {
    const double value = want.peers[i].value;
    if (std::isnan(value)) continue;
    EXPECT_NEAR(got.peers[i].value, value, 1e-12 * std::max(1.0, std::abs(value)))
        << want.peers[i].metric->name;
  }
  EXPECT_EQ(got.density_histogram, want.density_histogram);
}

TEST(Evaluate, NeitherMeshNorBatchShows) {
  const TempFolder folder;
  for (const char* activation : {"topk", "relu", "batchtopk"}) {
    const SavedDictionary saved = random_dictionary(activation, "linear");
    const std::string at = folder / activation;
    write_rows(at, random_rows(saved, kRows, 11));
    const ShardIndex data = ShardIndex::open(at);
    const std::unique_ptr<Communicator> alone =
        test_world().split(test_world().rank(), 0, "alone");  // each rank by itself
    const MetricReport want = evaluate(make_mesh(*alone, {}), saved.dictionary, saved.normalization,
                                       data, {61, 4096, 20});
    EXPECT_GT(want["l0"], 0);
    on_every_mesh([&](const Mesh& mesh) {
      const SavedDictionary mine = shard_of_saved(saved, mesh);
      for (int64_t batch : {1, 7, 4096}) {
        SCOPED_TRACE(std::string(activation) + " on " + mesh.name());
        expect_same(evaluate(mesh, mine.dictionary, mine.normalization, data, {61, batch, 20}),
                    want);
      }
    });
  }
}

// Bit for bit, intervals included, whatever kinds go through the pass together.
TEST(Evaluate, SeveralInOnePassAreEachOnItsOwn) {
  const TempFolder folder;
  std::vector<SavedDictionary> whole;
  for (const char* activation : {"topk", "relu", "batchtopk"})
    whole.push_back(random_dictionary(activation, activation[0] == 'r' ? "tied" : "linear"));
  whole[2].normalization = {};
  write_rows(folder / "x", random_rows(whole[0], kRows, 11));
  const ShardIndex data = ShardIndex::open(folder / "x");
  const EvaluateArgs args{61, 7, 20, {.resamples = 10, .block_rows = 4}};
  on_every_mesh([&](const Mesh& mesh) {
    std::vector<SavedDictionary> mine;
    for (const SavedDictionary& saved : whole) mine.push_back(shard_of_saved(saved, mesh));
    std::vector<Judged> judged;
    for (const SavedDictionary& saved : mine)
      judged.push_back({saved.dictionary, saved.normalization});
    const std::vector<MetricReport> together = evaluate_all(mesh, judged, data, args);
    EXPECT_EQ(together.size(), mine.size());
    for (size_t i = 0; i < together.size(); ++i) {
      SCOPED_TRACE(mine[i].dictionary.config.activation + " on " + mesh.name());
      const MetricReport alone =
          evaluate(mesh, mine[i].dictionary, mine[i].normalization, data, args);
      EXPECT_EQ(metrics_json(together[i]), metrics_json(alone));
    }
  });
}

// The numbers are those of the exported dictionary, whichever scale it was exported with.
TEST(Evaluate, FoldingTheNormalisationInChangesNothing) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("topk", "linear");
  write_rows(folder / "x", random_rows(saved, kRows, 11));
  const ShardIndex data = ShardIndex::open(folder / "x");
  on_every_mesh([&](const Mesh& mesh) {
    const auto report = [&](const SavedDictionary& whole) {
      const SavedDictionary mine = shard_of_saved(whole, mesh);
      return evaluate(mesh, mine.dictionary, mine.normalization, data, {});
    };
    const MetricReport want = report(saved);
    expect_near(report(test::folded_saved(saved, ExportScale::unit)), want, 1e-5);
    EXPECT_NEAR(report(test::folded_saved(saved, ExportScale::trained))["l1"], want["l1"], 1e-4);
  });
}

}  // namespace
}  // namespace megadict
