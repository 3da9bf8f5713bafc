// The encoder beside the pursuits on every mesh, on planted codes.
#include "eval/inference.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "data/shard_writer.h"
#include "eval/evaluate.h"
#include "eval/inference_lambda.h"
#include "io/file.h"
#include "support/mpi_main.h"
#include "support/random_dictionary.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::random_dictionary;
using test::random_tensor;
using test::TempFolder;

constexpr int64_t kRows = 67, kUsed = 61;  // divide by no mesh

ShardIndex written(const std::string& folder, const at::Tensor& x_bd) {
  make_folders(folder);
  ShardWriter writer(folder + "/a.h5", {x_bd.size(1), DType::f32, "m", "h", "t", 0}, 64);
  writer.append({x_bd.const_data_ptr<float>(), x_bd.size(0)});
  writer.finish();
  return ShardIndex::open(folder);
}

// Raw rows that the decoder gives for non-negative codes with `active` of the latents in a row, and
// noise.
at::Tensor planted_rows(const SavedDictionary& saved, int64_t active) {
  constexpr double kNoise = 0.2;
  const Dictionary& dictionary = saved.dictionary;
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  at::Tensor codes = at::zeros({kRows, dictionary.n}, at::kDouble);
  const at::Tensor order = random_tensor({kRows, dictionary.n}, 20).argsort(int64_t{1}, false);
  codes.scatter_(1, order.narrow(1, 0, active), 0.5 + random_tensor({kRows, active}, 21).abs());
  at::Tensor x = at::mm(codes, wide(dictionary.w_dec_ld)) + wide(dictionary.b_dec_d);
  x += kNoise * random_tensor({kRows, dictionary.d}, 22);
  x = x / saved.normalization.scale + at::tensor(saved.normalization.mean).to(at::kDouble);
  return x.to(at::kFloat).contiguous();
}

Dictionary shard_on(const Mesh& mesh, Dictionary dictionary) {
  dictionary.latents = shard_of(dictionary.n, mesh.feature_size(), mesh.feature_index);
  const auto mine = [&](const at::Tensor& t) {
    return t.narrow(0, dictionary.latents.begin, dictionary.latents.size()).contiguous();
  };
  const bool tied = dictionary.tied();
  dictionary.w_enc_ld = mine(dictionary.w_enc_ld);
  dictionary.w_dec_ld = tied ? dictionary.w_enc_ld : mine(dictionary.w_dec_ld);
  dictionary.b_enc_l = mine(dictionary.b_enc_l);
  for (at::Tensor& extra : dictionary.extra_l) extra = mine(extra);
  return dictionary;
}

InferenceArgs all_methods() {
  InferenceArgs args{.rows = kUsed};
  for (const Pursuit& pursuit : all_pursuits()) args.methods.push_back(&pursuit);
  return args;
}

const InferenceResult& result_of(const InferenceReport& report, std::string_view method) {
  for (const InferenceResult& result : report.results)
    if (result.method == method) return result;
  ADD_FAILURE() << "no " << method;
  return report.results.front();
}

template <class Test>
void on_every_mesh(Test&& test) {
  Communicator& world = test_world();
  for (int features = 1; features <= world.size(); ++features)
    if (world.size() % features == 0) test(make_mesh(world, {world.size() / features, features}));
}

void expect_same(const InferenceReport& got, const InferenceReport& want) {
  ASSERT_EQ(got.results.size(), want.results.size());
  for (size_t i = 0; i < want.results.size(); ++i) {
    const InferenceResult &a = got.results[i], &b = want.results[i];
    SCOPED_TRACE(b.method);
    EXPECT_EQ(a.method, b.method);
    EXPECT_EQ(a.k, b.k);
    EXPECT_EQ(a.lambda, b.lambda);
    EXPECT_EQ(a.l0, b.l0);
    EXPECT_EQ(a.fvu, b.fvu);
    EXPECT_EQ(a.of_encoder, b.of_encoder);
  }
}

TEST(Inference, EveryMeshGivesTheSameAndPursuitsAreAtLeastAsGood) {
  const TempFolder folder;  // each rank its own copy
  const std::unique_ptr<Communicator> alone =
      test_world().split(test_world().rank(), 0, "alone");  // each rank by itself
  const std::pair<const char*, const char*> kinds[] = {{"topk", "linear"},
                                                       {"relu", "linear"},
                                                       {"batchtopk", "tied"},
                                                       {"jumprelu", "tied"},
                                                       {"gated", "linear"}};
  for (const auto& [activation, decoder] : kinds) {
    SCOPED_TRACE(std::string(activation) + " " + decoder);
    const SavedDictionary saved = random_dictionary(activation, decoder);
    const ShardIndex data = written(folder / activation, planted_rows(saved, 3));
    InferenceArgs args = all_methods();
    // The others may have more active latents than the width, which no lasso has.
    if (activation != std::string("topk")) args.lambda = 0.1;
    const InferenceReport want =
        compare_inference(make_mesh(*alone, {}), saved.dictionary, saved.normalization, data, args);
    EXPECT_EQ(want.rows, kUsed);
    const InferenceResult& encoder = result_of(want, "encoder");
    EXPECT_GT(encoder.fvu, 0);
    EXPECT_LE(result_of(want, "omp").fvu, encoder.fvu);
    EXPECT_LE(result_of(want, "refit").fvu, encoder.fvu);
    EXPECT_LE(result_of(want, "refit").l0, encoder.l0);
    EXPECT_LT(result_of(want, "lars_refit").fvu, result_of(want, "lars").fvu);
    EXPECT_NEAR(result_of(want, "lars").fvu, result_of(want, "fista").fvu, 1e-4);
    args.batch_rows = 31;
    on_every_mesh([&](const Mesh& mesh) {
      SCOPED_TRACE(mesh.name());
      expect_same(compare_inference(mesh, shard_on(mesh, saved.dictionary), saved.normalization,
                                    data, args),
                  want);
    });
  }
}

// One number, whether evaluate() or the comparison gives it.
TEST(Inference, TheEncodersRowIsThatOfTheMetrics) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("topk", "tied");
  const ShardIndex data = written(folder / "x", planted_rows(saved, 3));
  on_every_mesh([&](const Mesh& mesh) {
    const Dictionary mine = shard_on(mesh, saved.dictionary);
    const MetricReport metrics = evaluate(mesh, mine, saved.normalization, data, {kUsed});
    const InferenceReport report =
        compare_inference(mesh, mine, saved.normalization, data, {.rows = kUsed});
    EXPECT_EQ(report.results.size(), 1);
    EXPECT_NEAR(report.results[0].fvu, metrics["fvu"], 1e-5 * metrics["fvu"]);
    EXPECT_NEAR(report.results[0].l0, metrics["l0"], 1e-12);
  });
}

// Orthonormal atoms and an encoder that is the decoder: what it says is the best there is.
TEST(Inference, ABestEncoderLeavesNothingToGain) {
  const TempFolder folder;
  SavedDictionary saved = random_dictionary("topk", "linear", 12, 12);
  Dictionary& dictionary = saved.dictionary;
  dictionary.w_dec_ld =
      std::get<0>(at::linalg_qr(random_tensor({12, 12}, 7))).to(at::kFloat).contiguous();
  dictionary.w_enc_ld = dictionary.w_dec_ld;
  dictionary.b_enc_l.zero_();
  dictionary.config.k = 2;
  const ShardIndex data = written(folder / "x", planted_rows(saved, 3));
  const Mesh mesh = make_mesh(test_world(), {});
  const InferenceReport report =
      compare_inference(mesh, shard_on(mesh, dictionary), saved.normalization, data, all_methods());
  for (const char* same : {"mp", "gp", "omp", "refit"}) {
    EXPECT_NEAR(result_of(report, same).of_encoder, 1, 1e-4) << same;
    EXPECT_NEAR(result_of(report, same).l0, 2, 1e-12) << same;
  }
  EXPECT_GT(result_of(report, "lars").of_encoder, 1);  // a lasso shrinks
  EXPECT_NEAR(result_of(report, "lars").l0, 2, 0.05);
}

void expect_refused(const SavedDictionary& saved, ExitCode code, const char* why) {
  const TempFolder folder;
  const ShardIndex data = written(folder / "x", planted_rows(saved, 3));
  const Mesh mesh = make_mesh(test_world(), {});
  try {
    compare_inference(mesh, shard_on(mesh, saved.dictionary), saved.normalization, data,
                      all_methods());
    ADD_FAILURE() << "not refused: " << why;
  } catch (const Error& error) {
    EXPECT_TRUE(error.agreed());
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(error.what(), testing::HasSubstr(why));
  }
}

TEST(Inference, WithoutCodesThereIsNothingToCompare) {
  SavedDictionary saved = random_dictionary("topk", "linear");
  saved.dictionary.b_enc_l.fill_(-1e6f);
  expect_refused(saved, ExitCode::bad_data, "no latent is active on the first 61 rows");
}

TEST(Inference, NoLassoHasMoreActiveCodesThanTheWidth) {
  expect_refused(random_dictionary("relu", "linear"), ExitCode::usage,
                 "no lambda gives an equal L0");
}

TEST(LambdaOfL0, FindsItFromEitherSideInFewTries) {
  for (const double power : {0.7, 1.0, 1.6})
    for (const double first : {1e-3, 0.2, 40.0}) {
      int tries = 0;
      const LambdaSearch found = lambda_of_l0(12, first, [&](double lambda) {
        ++tries;
        return 100 * std::pow(1 + lambda, -power) - (lambda > 30 ? 100 : 0);
      });
      EXPECT_NEAR(100 * std::pow(1 + found.lambda, -power), 12, 0.02) << power << " " << first;
      EXPECT_LE(tries, 20);
    }
}

// A staircase without the step that is wanted: the nearest one.
TEST(LambdaOfL0, EndsWhereThereIsNone) {
  std::vector<double> tried;
  const LambdaSearch found = lambda_of_l0(5, 1, [&](double lambda) {
    tried.push_back(lambda > 3 ? 4.5 : 7);
    return tried.back();
  });
  EXPECT_EQ(tried[found.best], 4.5);
  EXPECT_GT(found.lambda, 3);
}

}  // namespace
}  // namespace megadict
