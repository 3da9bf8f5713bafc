// Codes and statistics of latents as files, on every mesh against dense codes in fp64.
#include <gtest/gtest.h>

#include "comm/mesh.h"
#include "data/shard_writer.h"
#include "eval/encode.h"
#include "eval/evaluate.h"
#include "io/file.h"
#include "io/hdf5_file.h"
#include "support/mpi_main.h"
#include "support/random_dictionary.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::random_dictionary;
using test::random_rows;
using test::reconstruct;
using test::TempFolder;

constexpr int64_t kRows = 97;  // divides by no mesh
constexpr int64_t kTop = 4;

uint32_t document_of(int64_t row) {
  return static_cast<uint32_t>(row / 9);
}

// Two shards with columns.
ShardIndex write_rows(const std::string& folder, const at::Tensor& x_bd) {
  make_folders(folder);
  for (int part = 0; part < 2; ++part) {
    const Range rows = shard_of(x_bd.size(0), 2, part);
    ShardWriter writer(folder + (part == 0 ? "/a.h5" : "/b.h5"),
                       {x_bd.size(1), DType::f32, "m", "h", "t", 0}, 16);
    for (int64_t t = rows.begin; t < rows.end; ++t) {
      const auto token = static_cast<uint32_t>(1000 + t), position = static_cast<uint32_t>(t % 9);
      const uint32_t document = document_of(t);
      writer.append(
          {x_bd.const_data_ptr<float>() + t * x_bd.size(1), 1, &token, &position, &document});
    }
    writer.finish();
  }
  return ShardIndex::open(folder);
}

SavedDictionary shard_of_saved(const SavedDictionary& saved, const Mesh& mesh) {
  SavedDictionary out = saved;
  Dictionary& dictionary = out.dictionary;
  dictionary.latents = shard_of(dictionary.n, mesh.feature_size(), mesh.feature_index);
  for (at::Tensor* t : {&dictionary.w_enc_ld, &dictionary.w_dec_ld, &dictionary.b_enc_l})
    *t = t->narrow(0, dictionary.latents.begin, dictionary.latents.size()).contiguous();
  return out;
}

template <class Test>
void on_every_mesh(Test&& test) {
  Communicator& world = test_world();
  for (int features = 1; features <= world.size(); ++features)
    if (world.size() % features == 0) test(make_mesh(world, {world.size() / features, features}));
}

template <class T>
std::vector<T> read_all(const Hdf5File& file, const std::string& name) {
  const Hdf5Dataset facts = file.describe(name);
  std::vector<T> values(static_cast<size_t>(facts.rows() * facts.row_elements()));
  file.read_rows(name, {0, facts.rows()},
                 view_of(values.data(), static_cast<int64_t>(values.size())));
  return values;
}

at::Tensor dense_of(const Hdf5File& file, int64_t n) {
  const auto start = read_all<int64_t>(file, "row_ptr");
  const auto latent = read_all<int32_t>(file, "indices");
  const auto value = read_all<float>(file, "values");
  at::Tensor z = at::zeros({static_cast<int64_t>(start.size()) - 1, n}, at::kDouble);
  for (size_t t = 0; t + 1 < start.size(); ++t)
    for (int64_t e = start[t]; e < start[t + 1]; ++e) {
      if (e > start[t]) {
        EXPECT_LT(latent[static_cast<size_t>(e) - 1], latent[static_cast<size_t>(e)]);
      }
      z[static_cast<int64_t>(t)][latent[static_cast<size_t>(e)]] = value[static_cast<size_t>(e)];
    }
  return z;
}

TEST(EncodeFile, EveryMeshAndBatchWritesTheSame) {
  const TempFolder folder;  // each rank its own; rank 0 writes
  for (const char* activation : {"topk", "relu", "batchtopk"}) {
    const SavedDictionary saved = random_dictionary(activation, "linear");
    const at::Tensor x = random_rows(saved, kRows, 11);
    const ShardIndex data = write_rows(folder / activation, x);
    const at::Tensor want = reconstruct(saved, x).z_bn / saved.normalization.scale;
    at::Tensor first;
    std::map<int64_t, std::string> bytes;
    on_every_mesh([&](const Mesh& mesh) {
      const SavedDictionary mine = shard_of_saved(saved, mesh);
      for (int64_t batch : {1, 7, 4096}) {
        SCOPED_TRACE(std::string(activation) + " on " + mesh.name());
        const EncodedFile written =
            encode_data_set(mesh, mine.dictionary, mine.normalization, data,
                            {folder / "codes.h5", "dictionary", "data", 0, batch});
        EXPECT_EQ(written.rows, kRows);
        if (mesh.world->rank() != 0) continue;
        const Hdf5File file = Hdf5File::open(folder / "codes.h5");
        EXPECT_EQ(file.integer("/", "n_latents"), saved.dictionary.n);
        EXPECT_EQ(file.integer("/", "entries"), written.entries);
        EXPECT_EQ(read_all<uint32_t>(file, "tokens").back(), 1000U + kRows - 1);
        const at::Tensor z = dense_of(file, saved.dictionary.n);
        EXPECT_TRUE(at::equal(z > 0, want > 0));
        EXPECT_LT(test::relative(z, want), 1e-5);
        if (!first.defined()) first = z;
        EXPECT_TRUE(at::equal(first, z)) << "other bits";
        const std::string content = read_file(folder / "codes.h5");
        EXPECT_EQ(bytes.try_emplace(batch, content).first->second, content) << "another file";
      }
    });
  }
}

struct LatentWant {
  int64_t fired = 0;
  double mean = 0;
  std::vector<int64_t> rows;  // the best, first
};

LatentWant by_hand(const at::Tensor& z_bn, int64_t latent) {
  LatentWant want;
  const at::Tensor z = z_bn.select(1, latent).contiguous();
  std::vector<std::pair<double, int64_t>> order;
  for (int64_t t = 0; t < z.size(0); ++t) {
    const double value = z.const_data_ptr<double>()[t];
    if (value > 0) order.emplace_back(-value, t);
    want.mean += value;
  }
  want.fired = static_cast<int64_t>(order.size());
  want.mean /= std::max<double>(1, static_cast<double>(want.fired));
  std::sort(order.begin(), order.end());
  order.resize(std::min<size_t>(order.size(), kTop));
  for (const auto& [value, row] : order) want.rows.push_back(row);
  want.rows.resize(kTop, -1);
  return want;
}

void expect_latents(const Hdf5File& file, const SavedDictionary& saved, const at::Tensor& z_bn) {
  const auto fired = read_all<int64_t>(file, "fired");
  const auto mean = read_all<float>(file, "mean"), largest = read_all<float>(file, "max");
  const auto rows = read_all<int64_t>(file, "top_rows"),
             nearest = read_all<int64_t>(file, "nearest");
  const auto tokens = read_all<uint32_t>(file, "top_tokens");
  const auto position = read_all<uint32_t>(file, "top_position");
  const at::Tensor decoder = saved.dictionary.w_dec_ld.to(at::kDouble);
  const at::Tensor cosine = at::mm(decoder, decoder.t()).fill_diagonal_(-2);
  for (int64_t j = 0; j < saved.dictionary.n; ++j) {
    const auto at = static_cast<size_t>(j);
    const LatentWant want = by_hand(z_bn, j);
    EXPECT_EQ(fired[at], want.fired);
    EXPECT_NEAR(mean[at], want.mean, 1e-4);
    EXPECT_NEAR(largest[at], z_bn.select(1, j).max().item<double>(), 1e-4);
    EXPECT_EQ(nearest[at], cosine[j].argmax().item<int64_t>());
    for (size_t t = 0; t < kTop; ++t) {
      const int64_t row = rows[at * kTop + t];
      EXPECT_EQ(row, want.rows[t]);
      EXPECT_EQ(tokens[at * kTop + t], row < 0 ? 0U : 1000U + static_cast<uint32_t>(row));
      EXPECT_EQ(position[at * kTop + t], row < 0 ? 0U : static_cast<uint32_t>(row % 9));
    }
  }
}

TEST(LatentFile, EveryMeshFindsTheSameRows) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("topk", "linear");
  const at::Tensor x = random_rows(saved, kRows, 11);
  const ShardIndex data = write_rows(folder / "x", x);
  const at::Tensor z = reconstruct(saved, x).z_bn / saved.normalization.scale;
  on_every_mesh([&](const Mesh& mesh) {
    const SavedDictionary mine = shard_of_saved(saved, mesh);
    for (int64_t batch : {7, 4096}) {
      SCOPED_TRACE(mesh.name());
      LatentStatistics statistics(mine.dictionary.latents, kTop);
      EvaluateArgs args{0, batch};
      args.latents = &statistics;
      evaluate(mesh, mine.dictionary, mine.normalization, data, args);
      write_latent_statistics(folder / "latents.h5", mesh, mine.dictionary, statistics, data,
                              {"dictionary", "data", kRows, saved.normalization.scale, true});
      if (mesh.world->rank() == 0) expect_latents(Hdf5File::open(folder / "latents.h5"), saved, z);
    }
  });
}

MetricReport bootstrapped(const Mesh& mesh, const SavedDictionary& saved, const ShardIndex& data,
                          int64_t batch, const BootstrapOptions& options) {
  const SavedDictionary mine = shard_of_saved(saved, mesh);
  EvaluateArgs args{0, batch};
  args.bootstrap = options;
  return evaluate(mesh, mine.dictionary, mine.normalization, data, args);
}

TEST(Bootstrap, EveryMeshAndBatchResamplesAlike) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("relu", "linear");
  const ShardIndex data = write_rows(folder / "x", random_rows(saved, kRows, 11));
  for (const int64_t block : {0, 9}) {
    std::vector<double> first;
    on_every_mesh([&](const Mesh& mesh) {
      for (int64_t batch : {1, 7, 4096}) {
        SCOPED_TRACE(mesh.name());
        const MetricReport report = bootstrapped(mesh, saved, data, batch, {200, block, 0.9, 5});
        EXPECT_EQ(report.intervals.units, (kRows + 8) / 9);
        std::vector<double> ends;
        for (const auto& [metric, low, high, standard_error] : report.intervals.of) {
          EXPECT_LT(low, high) << metric->name;
          EXPECT_GT(standard_error, 0) << metric->name;
          EXPECT_LE(low, report[metric->name] * (1 + 1e-9)) << metric->name;
          EXPECT_GE(high, report[metric->name] * (1 - 1e-9)) << metric->name;
          ends.insert(ends.end(), {low, high, standard_error});
        }
        if (first.empty()) first = ends;
        ASSERT_EQ(first.size(), ends.size());
        for (size_t i = 0; i < ends.size(); ++i) EXPECT_NEAR(ends[i], first[i], 1e-10);
      }
    });
  }
}

// The mean of independent rows has the standard error of the textbook.
TEST(Bootstrap, StandardErrorOfAMean) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("topk", "linear");
  const at::Tensor x = random_rows(saved, 2000, 13);
  const ShardIndex data = write_rows(folder / "x", x);
  const at::Tensor residual = reconstruct(saved, x).x_hat_bd - x.to(at::kDouble);
  const double want = residual.square().sum(1).std().item<double>() / std::sqrt(2000.0);
  const Mesh mesh = make_mesh(test_world(), {});
  const MetricReport report = bootstrapped(mesh, saved, data, 500, {2000, 1, 0.95, 3});
  for (const auto& [metric, low, high, standard_error] : report.intervals.of) {
    if (metric->name != "mse") continue;
    EXPECT_NEAR(standard_error, want, 0.08 * want);
    EXPECT_NEAR(high - low, 2 * 1.96 * want, 0.2 * want);
  }
}

}  // namespace
}  // namespace megadict
