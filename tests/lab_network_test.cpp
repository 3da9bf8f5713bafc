// The network of features on MNIST: gradients against central differences, sparse products against
// dense ones, and the whole of it on a data set of a few drawn bars.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/philox.h"
#include "io/file.h"
#include "io/npy.h"
#include "lab/experiments.h"
#include "lab/layer_connector.h"
#include "lab/network_files.h"
#include "lab/sparse_product.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::TempFolder;

template <class T>
Tiles<T> random_tiles(int64_t samples, int64_t features, uint64_t step) {
  Tiles<T> x(samples, features);
  const Rng rng{5, Purpose::test, step};
  for (int64_t i = 0; i < samples; ++i)
    for (int64_t f = 0; f < features; ++f)
      x.at(i, f) = static_cast<T>(rng.normals(static_cast<uint64_t>(i * features + f))[0]);
  return x;
}

// Each parameter's gradient as the last call of `loss` left it.
void expect_gradients(const std::vector<Learnt<double>*>& parameters,
                      const std::function<double()>& loss) {
  constexpr double kStep = 1e-6;
  loss();
  std::vector<std::vector<double>> gradients;
  for (const Learnt<double>* p : parameters) gradients.push_back(p->gradient);
  for (size_t which = 0; which < parameters.size(); ++which) {
    Learnt<double>& p = *parameters[which];
    for (size_t i = 0; i < p.value.size(); ++i) {
      const double kept = p.value[i];
      p.value[i] = kept + kStep;
      const double above = loss();
      p.value[i] = kept - kStep;
      const double below = loss();
      p.value[i] = kept;
      EXPECT_NEAR(gradients[which][i], (above - below) / (2 * kStep), 1e-8) << p.name << " " << i;
    }
  }
}

TEST(Classifier, GradientsAreThoseOfCentralDifferences) {
  const Tiles<double> x = random_tiles<double>(32, 6, 0);
  std::vector<uint8_t> labels(32);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<uint8_t>(i * 7 % 4);
  Classifier<double> net({6, 5, 3, 4}, 1);
  ClassifierPass<double> pass;
  expect_gradients(net.parameters(), [&] { return net.gradients(x, labels, pass); });
}

TEST(Classifier, EqualLogitsCostTheLogarithmOfTheirNumber) {
  const Tiles<double> logits(16, 10);
  EXPECT_NEAR(cross_entropy<double>(logits, std::vector<uint8_t>(16, 3), nullptr), std::log(10.0),
              1e-12);
  EXPECT_EQ(count_correct(Tiles<float>(16, 10), std::vector<uint8_t>(16, 0)), 16);
  EXPECT_EQ(count_correct(Tiles<float>(16, 10), std::vector<uint8_t>(16, 1)), 0);
}

TEST(Connector, GradientsAreThoseOfCentralDifferences) {
  const Tiles<double> from = random_tiles<double>(32, 7, 1), to = random_tiles<double>(32, 7, 2);
  Connector<double> connector = random_connector<double>(7, 3);
  ConnectorPass<double> pass;
  expect_gradients({&connector.map.weight, &connector.map.bias},
                   [&] { return connector.gradients(from, to, 2.5, pass).total; });
}

// Where the layer's own ReLU cuts nothing, the closed form foretells exactly what the autoencoders
// say about a decoded activation.
TEST(Connector, TheClosedFormIsExactWhereNothingIsCut) {
  for (const bool tied : {true, false}) {
    SmallSae<double> before({.width = 4, .latents = 6, .tied = tied, .bias = tied, .seed = 1});
    SmallSae<double> after({.width = 4, .latents = 6, .tied = tied, .bias = tied, .seed = 2});
    Linear<double> layer{{"W", 4, 4}, {"b", 4, 1}};
    draw_uniform(layer.weight, 4, 3, 0);
    std::fill(layer.bias.value.begin(), layer.bias.value.end(), 50.0);
    Tiles<double> codes = random_tiles<double>(16, 6, 3), x(16, 4), y(16, 4), foretold(16, 6);
    for (double& z : codes.values()) z = std::abs(z);
    decode(before, codes, x);
    layer.forward(x, y);
    SaePass<double> pass;
    after.forward(y, pass);
    closed_connector(before, layer, after).forward(codes, foretold);
    for (size_t i = 0; i < foretold.values().size(); ++i)
      EXPECT_NEAR(foretold.values()[i], pass.codes.values()[i], 1e-9);
  }
}

TEST(SparseProduct, EqualsTheDenseOneOfWhatIsKept) {
  constexpr int64_t kOuts = 9, kIns = 13;
  Linear<float> layer{{"W", kOuts, kIns}, {"b", kOuts, 1}};
  draw_normal(layer.weight, 1, 0);
  draw_normal(layer.bias, 1, 1);
  const Tiles<float> x = random_tiles<float>(48, kIns, 4);
  Tiles<float> dense(48, kOuts), sparse(48, kOuts);
  const CompressedRows rows = compress(layer.weight, .8);
  EXPECT_EQ(rows.entries(), count_above(layer.weight, .8));
  EXPECT_EQ(compress(layer.weight, 100).entries(), 0);
  for (float& w : layer.weight.value) w = std::abs(w) > .8F ? w : 0;
  layer.forward(x, dense);
  multiply(rows, layer.bias.value.data(), x, sparse);
  for (size_t i = 0; i < dense.values().size(); ++i)
    EXPECT_NEAR(sparse.values()[i], dense.values()[i], 1e-5);
}

TEST(Minibatches, EverySampleOnceAnEpochInAnotherOrder) {
  std::vector<std::vector<int32_t>> epochs(1);
  std::vector<double> means;
  for_batches(
      80, {.epochs = 3, .batch = 32, .seed = 4},
      [&](std::span<const int32_t> which) {
        EXPECT_TRUE(which.size() == 32 || which.size() == 16);
        epochs.back().insert(epochs.back().end(), which.begin(), which.end());
        return 2.0;
      },
      [&](double mean) {
        means.push_back(mean);
        epochs.emplace_back();
      });
  EXPECT_THAT(means, testing::ElementsAre(2, 2, 2));
  epochs.pop_back();
  EXPECT_NE(epochs[0], epochs[1]);
  for (std::vector<int32_t>& order : epochs) {
    std::sort(order.begin(), order.end());
    ASSERT_EQ(order.size(), 80);
    for (int32_t i = 0; i < 80; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
  }
  int64_t steps = 0;
  const auto count = [&](std::span<const int32_t>) { return static_cast<double>(++steps); };
  for_batches(80, {.epochs = 3, .batch = 32, .max_steps = 4}, count, [](double) {});
  EXPECT_EQ(steps, 4);
  const Error error = test::error_of([] {
    for_batches(
        16, {}, [](std::span<const int32_t>) { return std::nan(""); }, [](double) {});
  });
  EXPECT_EQ(error.code(), ExitCode::diverged);
}

std::string idx(const std::vector<uint32_t>& shape, const std::string& values) {
  std::string bytes("\0\0\x08", 3);
  bytes += static_cast<char>(shape.size());
  for (const uint32_t size : shape)
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(size >> shift & 0xff);
  return bytes + values;
}

// `count` images whose digit is the row of a bright bar.
void write_bars(const TempFolder& folder, const std::string& name, uint32_t count) {
  std::string pixels(static_cast<size_t>(count) * kPixels, '\0'), labels;
  const Rng rng{9, Purpose::test, count};
  for (uint32_t i = 0; i < count; ++i) {
    const auto digit = static_cast<uint32_t>(rng.uniform(i) * kDigits);
    labels += static_cast<char>(digit);
    for (int64_t p = 0; p < 2 * kImageSide; ++p)
      pixels[static_cast<size_t>(i * kPixels + 2 * digit * kImageSide + p)] =
          static_cast<char>(155 + static_cast<int>(100 * rng.uniform(i, static_cast<uint32_t>(p))));
  }
  write_file_atomic(folder / (name + "-images-idx3-ubyte.gz"), idx({count, 28, 28}, pixels));
  write_file_atomic(folder / (name + "-labels-idx1-ubyte.gz"), idx({count}, labels));
}

NetworkSettings few_bars() {
  return {.split = {320, 96, false},
          .classifier_epochs = 12,
          .epochs = 30,
          .latents = 32,
          .rate = 3e-3};
}

TEST(Mnist, SplitsAndRefusals) {
  const TempFolder folder;
  EXPECT_EQ(test::error_of([&] { find_mnist(folder.path()); }).code(), ExitCode::bad_data);
  write_bars(folder, "train", 64);
  write_bars(folder, "t10k", 48);
  EXPECT_EQ(find_mnist(folder.path()), folder.path());
  const Mnist both = read_mnist(folder.path(), {64, 32, false});
  const Mnist test_alone = read_mnist(folder.path(), {32, 16, true});
  EXPECT_EQ(both.train.count(), 64);
  EXPECT_EQ(test_alone.validation.count(), 16);
  EXPECT_EQ(test_alone.train.labels[5], both.validation.labels[5]);
  EXPECT_EQ(read_mnist(folder.path(), {16, 32, true}).validation.labels[1],
            both.validation.labels[17]);
  Tiles<float> x(16, kPixels);
  const std::vector<int32_t> which(16, 3);
  gather_images(both.train, which, x);
  for (int64_t p = 0; p < kPixels; ++p)
    EXPECT_NEAR(x.at(7, p), both.train.pixels[static_cast<size_t>(3 * kPixels + p)] / 255.0, 1e-6);
  const Error few = test::error_of([&] { read_mnist(folder.path(), {65, 16, false}); });
  EXPECT_EQ(few.code(), ExitCode::bad_data);
  write_file_atomic(folder / "t10k-labels-idx1-ubyte.gz", idx({48}, std::string(48, 10)));
  const Error digit = test::error_of([&] { read_mnist(folder.path(), {32, 16, true}); });
  EXPECT_THAT(digit.what(), testing::HasSubstr("label 0 is 10"));
  write_file_atomic(folder / "t10k-labels-idx1-ubyte.gz", idx({47}, std::string(47, 1)));
  const Error counts = test::error_of([&] { read_mnist(folder.path(), {32, 16, true}); });
  EXPECT_THAT(counts.what(), testing::HasSubstr("[48,28,28]"));
}

TEST(Network, LearnsBarsAndItsFeaturesStandForThem) {
  const TempFolder folder, files;
  write_bars(folder, "train", 320);
  write_bars(folder, "t10k", 96);
  const BaseNetwork base = train_base(few_bars(), folder.path());
  EXPECT_GT(base.right_by_epoch.back(), .99);
  EXPECT_LT(base.train_loss_by_epoch.back(), base.train_loss_by_epoch.front());
  const std::vector<LayerSae> saes = train_saes(base, DecoderKind::tied, .005);
  for (const LayerSae& layer : saes) EXPECT_LT(layer.mse_by_epoch.back(), layer.mse_by_epoch[0]);
  const std::vector<LayerConnector> closed = train_connectors(base, saes, true, .1);
  const std::vector<LayerConnector> random = train_connectors(base, saes, false, .1);
  for (const auto& connectors : {closed, random})
    for (const LayerConnector& layer : connectors) {
      EXPECT_EQ(layer.mse_by_epoch.size(), 31);
      EXPECT_LT(layer.mse_by_epoch.back(), layer.mse_by_epoch.front());
    }
  const Accuracies found = accuracies(base, saes, {&closed[0].connector, &closed[1].connector});
  EXPECT_EQ(found.base, base.right_by_epoch.back());
  EXPECT_GT(found.reconstructed, .95);
  EXPECT_GT(found.simulated, .9);
  write_network_files(files.path(), base, saes, closed);
  EXPECT_THAT(NpyFile::open(files / "connector_12.npy").shape(), testing::ElementsAre(31, 32, 32));
  EXPECT_THAT(NpyFile::open(files / "latent_images.npy").shape(),
              testing::ElementsAre(3, 16, 10, 28, 28));
  EXPECT_THAT(NpyFile::open(files / "decoders.npy").shape(), testing::ElementsAre(3, 64, 32));
}

TEST(Network, UntiedDecodersTrainAndUnitColumnsStayUnit) {
  const TempFolder folder;
  write_bars(folder, "train", 320);
  write_bars(folder, "t10k", 96);
  NetworkSettings settings = few_bars();
  settings.max_steps = 20;
  const BaseNetwork base = train_base(settings, folder.path());
  for (const DecoderKind kind : {DecoderKind::unit_columns, DecoderKind::free}) {
    const LayerSae layer = train_saes(base, kind, .02)[0];
    EXPECT_LT(layer.mse_by_epoch.back(), layer.mse_by_epoch[0]) << name_of(kind);
    double square = 0;
    const Learnt<float>& d = layer.sae.decoder();
    for (int64_t f = 0; f < d.rows; ++f)
      square += std::pow(d.value[static_cast<size_t>(f * d.cols)], 2);
    if (kind == DecoderKind::unit_columns)
      EXPECT_NEAR(square, 1, 1e-5);
    else
      EXPECT_GT(std::abs(square - 1), 1e-3);
  }
}

TEST(Network, TheTablesTakeWhatTheCellsGive) {
  const TempFolder folder;
  write_bars(folder, "train", 64);
  write_bars(folder, "t10k", 64);
  for (const LabExperiment& experiment :
       {connectors_experiment(), tied_experiment(), sparse_weights_experiment()}) {
    const LabScale scale{
        .quick = true, .seeds = 1, .samples = 64, .steps = 2, .mnist = folder.path()};
    experiment.check(scale);
    std::vector<LabResult> results;
    for (const LabCell& cell : experiment.cells(scale))
      results.push_back({cell.group, cell.seed, 0, cell.settings,
                         cell.run_into ? cell.run_into(folder.path()) : cell.run()});
    const std::vector<LabRow> rows = experiment.table(LabResults(std::move(results)));
    EXPECT_GT(rows.size(), 5) << experiment.name;
  }
}

TEST(Network, NumbersOfTheSyntheticProblemAreRefused) {
  for (const LabScale& scale : {LabScale{.k = 3}, LabScale{.lambda = .1}, LabScale{.zipf = 1}})
    EXPECT_EQ(test::error_of([&] { connectors_experiment().cells(scale); }).code(),
              ExitCode::usage);
}

}  // namespace
}  // namespace megadict
