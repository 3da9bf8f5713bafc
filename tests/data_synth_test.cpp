#include "data/synth.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "data/batch_stream.h"
#include "data/row_reader.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::HasSubstr;

double norm(const float* row, int64_t width) {
  double square = 0;
  for (int64_t i = 0; i < width; ++i) square += double{row[i]} * row[i];
  return std::sqrt(square);
}

TEST(Synth, DictionaryHasUnitColumnsInRandomDirections) {
  const SynthSource source({.n_latents = 400, .width = 33});
  double mean_cosine = 0;
  for (int64_t j = 0; j < 400; ++j) {
    EXPECT_NEAR(norm(source.dictionary().data() + j * 33, 33), 1.0, 1e-6);
    for (int64_t i = 0; i < 33 && j > 0; ++i)
      mean_cosine += source.dictionary()[static_cast<size_t>(j * 33 + i)] *
                     source.dictionary()[static_cast<size_t>(i)] / 399;
  }
  EXPECT_NEAR(mean_cosine, 0.0, 0.05);
}

TEST(Synth, ActivationIsTheCodeTimesTheDictionary) {
  const SynthSource source({.n_latents = 16, .width = 8, .k = 3});
  for (int64_t row : {0, 1, 77, 1000000}) {
    const SynthCode code = source.code(row);
    std::vector<double> expected(8);
    for (size_t a = 0; a < code.latents.size(); ++a)
      for (size_t i = 0; i < 8; ++i)
        expected[i] +=
            code.values[a] * source.dictionary()[static_cast<size_t>(code.latents[a]) * 8 + i];
    std::vector<float> x(8);
    source.activation(row, x.data());
    for (size_t i = 0; i < 8; ++i) EXPECT_FLOAT_EQ(x[i], static_cast<float>(expected[i]));
  }
}

struct Counts {
  std::map<int64_t, int> latents;
  double values = 0, squares = 0, active = 0, negative = 0, pairs_inside = 0, pairs_across = 0;
};

// Every code has distinct ascending latents in range; what their distribution looks like is
// returned.
Counts count(const SynthOptions& options, int64_t rows) {
  const SynthSource source(options);
  Counts counts;
  for (int64_t row = 0; row < rows; ++row) {
    const SynthCode code = source.code(row);
    EXPECT_TRUE(std::is_sorted(code.latents.begin(), code.latents.end()));
    EXPECT_EQ(std::set<int64_t>(code.latents.begin(), code.latents.end()).size(),
              code.latents.size());
    EXPECT_GE(code.latents.front(), 0);
    EXPECT_LT(code.latents.back(), options.n_latents);
    EXPECT_EQ(code.values.size(), code.latents.size());
    counts.active += static_cast<double>(code.latents.size()) / static_cast<double>(rows);
    for (size_t a = 0; a < code.latents.size(); ++a) {
      ++counts.latents[code.latents[a]];
      counts.values += code.values[a];
      counts.squares += code.values[a] * code.values[a];
      counts.negative += code.values[a] < 0;
      for (size_t b = 0; b < a; ++b)
        (code.latents[a] / 4 == code.latents[b] / 4 ? counts.pairs_inside : counts.pairs_across) +=
            1;
    }
  }
  return counts;
}

TEST(Synth, HalfNormalCodesWithExactlyKUniformLatents) {
  const Counts counts = count({.n_latents = 16, .width = 8, .k = 3}, 20000);
  EXPECT_DOUBLE_EQ(std::round(counts.active * 1e6) / 1e6, 3.0);
  EXPECT_EQ(counts.negative, 0);
  EXPECT_NEAR(counts.values / 60000, std::sqrt(2 / M_PI), 0.01);
  EXPECT_NEAR(counts.squares / 60000, 1.0, 0.02);
  for (const auto& [latent, times] : counts.latents) EXPECT_NEAR(times, 3750, 250) << latent;
}

TEST(Synth, SignedCodes) {
  const Counts counts = count({.n_latents = 16, .width = 8, .k = 3, .sign = "signed"}, 20000);
  EXPECT_NEAR(counts.negative / 60000, 0.5, 0.01);
  EXPECT_NEAR(counts.values / 60000, 0.0, 0.02);
}

TEST(Synth, ZipfFrequencyFallsAndMagnitudesFollow) {
  const Counts counts = count({.n_latents = 10, .width = 4, .k = 3, .zipf = 1.0}, 100000);
  int before = 1 << 30;
  for (const auto& [latent, times] : counts.latents) {
    EXPECT_LT(times, before) << latent;
    before = times;
  }
  EXPECT_LT(counts.values / 300000, 0.4);  // (p + 0.1) times the half-normal mean
  // Inclusion of latent 0 in three sequential draws, summed over the latents drawn before it.
  double weight[10], sum = 0, included = 0;
  for (int i = 0; i < 10; ++i) sum += weight[i] = 1.0 / (i + 1);
  for (double& w : weight) w /= sum;
  included = weight[0];
  for (int a = 1; a < 10; ++a) {
    included += weight[a] * weight[0] / (1 - weight[a]);
    for (int b = 1; b < 10; ++b)
      if (b != a)
        included +=
            weight[a] * weight[b] / (1 - weight[a]) * weight[0] / (1 - weight[a] - weight[b]);
  }
  EXPECT_NEAR(counts.latents.at(0) / 100000.0, included, 0.005);
}

TEST(Synth, SteepZipfStillFindsKLatents) {
  count({.n_latents = 40, .width = 4, .k = 40, .zipf = 6.0}, 50);
}

TEST(Synth, VariableKAndCorrelatedCodes) {
  const Counts uniform = count({.n_latents = 16, .width = 8, .k = 3, .k_dist = "uniform"}, 20000);
  EXPECT_NEAR(uniform.active, 3.0, 0.05);
  const Counts plain = count({.n_latents = 16, .width = 8, .k = 3}, 20000);
  const Counts tied = count({.n_latents = 16, .width = 8, .k = 3, .correlation = 0.5}, 20000);
  EXPECT_GT(tied.pairs_inside, 1.3 * plain.pairs_inside);
  for (const auto& [latent, times] : tied.latents) EXPECT_NEAR(times, 3750, 300) << latent;
}

TEST(Synth, NoiseHasItsVariance) {
  const SynthSource clean({.n_latents = 16, .width = 9, .k = 3});
  const SynthSource noisy({.n_latents = 16, .width = 9, .k = 3, .noise_std = 0.5});
  std::vector<float> a(9), b(9);
  double squares = 0;
  for (int64_t row = 0; row < 5000; ++row) {
    clean.activation(row, a.data());
    noisy.activation(row, b.data());
    for (size_t i = 0; i < 9; ++i) squares += (b[i] - a[i]) * (b[i] - a[i]);
  }
  EXPECT_NEAR(squares / 45000, 0.25, 0.01);
}

TEST(Synth, WritesShardsEvaluationAndTruth) {
  const TempFolder folder;
  SynthDataset dataset;
  dataset.options = {.n_latents = 12, .width = 5, .k = 2, .seed = 9};
  dataset.out = folder / "toy";
  dataset.rows = 1000;
  dataset.eval_fraction = 0.1;
  EXPECT_EQ(write_synth(dataset), (std::pair<int64_t, int64_t>{900, 100}));
  const ShardIndex training = ShardIndex::open(folder / "toy");
  const ShardIndex evaluation = ShardIndex::open(folder / "toy/eval");
  EXPECT_EQ(training.rows(), 900);
  EXPECT_EQ(evaluation.rows(), 100);

  const SynthSource source(dataset.options);
  std::vector<float> stored(5), made(5);
  read_rows(evaluation, {7}, stored.data());
  source.activation(907, made.data());
  EXPECT_EQ(stored, made);
  const SafetensorsFile truth = SafetensorsFile::open(folder / "toy/truth.safetensors");
  EXPECT_EQ(truth.at("W_dec").shape, (std::vector<int64_t>{12, 5}));
  EXPECT_EQ(truth.read_as_float(truth.at("W_dec")), source.dictionary());
  EXPECT_EQ(truth.metadata().at("seed"), "9");

  // More rows do not change the ones there were; half precision is stored on request.
  dataset.out = folder / "longer";
  dataset.rows = 2000;
  dataset.eval_fraction = 0;
  dataset.dtype = "float16";
  write_synth(dataset);
  const ShardIndex longer = ShardIndex::open(folder / "longer");
  EXPECT_EQ(longer.facts().dtype, DType::f16);
  EXPECT_FALSE(folder_exists(folder / "longer/eval"));
  read_rows(longer, {907}, stored.data());
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(stored[i], made[i], 1e-3);
}

TEST(Synth, RefusesOptionsOutOfRange) {
  const TempFolder folder;
  const auto refused = [&](auto change, const char* text) {
    SynthDataset dataset;
    dataset.out = folder / "x";
    dataset.rows = 100;
    change(dataset);
    const Error error = error_of([&] { write_synth(dataset); });
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_THAT(error.line(), HasSubstr(text));
    EXPECT_TRUE(list_files(folder.path(), "").empty());
  };
  refused([](auto& d) { d.options.n_latents = 0; }, "n_latents is 0");
  refused([](auto& d) { d.options.width = 0; }, "d is 0");
  refused([](auto& d) { d.options.k = 17; }, "k is 17. hint: 1 to n_latents");
  refused([](auto& d) { d.options.sign = "both"; }, "sign is 'both'. hint: half or signed");
  refused([](auto& d) { d.options.noise_std = -1; }, "noise_std is -1");
  refused([](auto& d) { d.options.zipf = NAN; }, "zipf is nan");
  refused([](auto& d) { d.options.correlation = 2; }, "correlation is 2");
  refused([](auto& d) { d.rows = 0; }, "rows is 0");
  refused([](auto& d) { d.eval_fraction = 1; }, "eval_fraction is 1");
  refused([](auto& d) { d.dtype = "float8"; }, "dtype is 'float8'");
  refused([](auto& d) { d.out = ""; }, "no folder to write to");
}

TEST(Synth, DoesNotOverwriteAFolder) {
  const TempFolder folder;
  write_file_atomic(folder / "x", "");
  SynthDataset dataset;
  dataset.out = folder.path() + "/";
  dataset.rows = 10;
  const Error error = error_of([&] { write_synth(dataset); });
  EXPECT_EQ(error.code(), ExitCode::usage);
  EXPECT_THAT(error.line(), HasSubstr("exists and is not an empty folder"));
  dataset.out = folder / "x";  // an empty file
  EXPECT_THAT(error_of([&] { write_synth(dataset); }).line(), HasSubstr("is not an empty folder"));
}

}  // namespace
}  // namespace megadict
