#include "data/import.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <set>

#include "base/philox.h"
#include "data/batch_stream.h"
#include "data/inspect.h"
#include "data/row_reader.h"
#include "data/shard_file.h"
#include "io/file.h"
#include "io/hdf5_file.h"
#include "io/safetensors.h"
#include "support/shards.h"
#include "support/shared_data.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;

std::vector<float> rows_of(int64_t rows, int64_t width, int64_t first = 0) {
  std::vector<float> values;
  for (int64_t r = first; r < first + rows; ++r)
    for (int64_t c = 0; c < width; ++c) values.push_back(test::element(r, c));
  return values;
}

void write_npy(const std::string& path, const std::string& descr, const std::string& shape,
               const void* data, size_t bytes) {
  std::string header =
      "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() & 0xFF);
  file += static_cast<char>(header.size() >> 8);
  file += header;
  file.append(static_cast<const char*>(data), bytes);
  write_file_atomic(path, file);
}

std::vector<float> read_all(const std::string& folder) {
  const ShardIndex index = ShardIndex::open(folder);
  std::vector<float> values(static_cast<size_t>(index.rows() * index.width()));
  RowReader(index).read(Range{0, index.rows()}, values.data());
  return values;
}

class Import : public testing::Test {
 protected:
  ImportOptions options(const std::string& file) {
    ImportOptions made;
    made.from = folder_ / file;
    made.out = folder_ / "out";
    return made;
  }
  // The content of training and evaluation rows equals these rows in order.
  void expect_split(const std::vector<float>& rows, int64_t training, int64_t width) {
    std::vector<float> back = read_all(folder_ / "out"), held = read_all(folder_ / "out/eval");
    EXPECT_EQ(static_cast<int64_t>(back.size()), training * width);
    back.insert(back.end(), held.begin(), held.end());
    EXPECT_EQ(back, rows);
  }
  TempFolder folder_;
};

TEST_F(Import, NpyWithLeadingDimensions) {
  const std::vector<float> rows = rows_of(100, 3);
  write_npy(folder_ / "a.npy", "<f4", "(20, 5, 3)", rows.data(), rows.size() * 4);
  ImportOptions from = options("a.npy");
  from.model = "gpt2";
  from.hook = "blocks.8";
  from.layer = 8;
  const ImportReport report = import_activations(from);
  EXPECT_EQ(report.training_rows, 95);
  EXPECT_EQ(report.eval_rows, 5);
  EXPECT_EQ(report.width, 3);
  EXPECT_FALSE(report.split_by_document);
  expect_split(rows, 95, 3);
  const DatasetFacts facts = ShardIndex::open(folder_ / "out").facts();
  EXPECT_EQ(facts.model, "gpt2");
  EXPECT_EQ(facts.hook, "blocks.8");
  EXPECT_EQ(facts.layer, 8);
}

TEST_F(Import, EveryElementType) {
  const std::vector<float> rows = rows_of(60, 4);
  std::vector<uint16_t> half, brain;
  for (float value : rows) {
    half.push_back(float_to_half(value));
    brain.push_back(float_to_bfloat16(value));
  }
  const std::vector<double> wide(rows.begin(), rows.end());
  const struct {
    const char *name, *descr, *dtype;
    const void* data;
    size_t size;
    DType stored;
  } cases[] = {{"half", "<f2", "", half.data(), 2, DType::f16},
               {"brain", "<u2", "bfloat16", brain.data(), 2, DType::bf16},
               {"wide", "<f8", "", wide.data(), 8, DType::f32}};
  for (const auto& c : cases) {
    const std::string name = std::string(c.name) + ".npy";
    write_npy(folder_ / name, c.descr, "(60, 4)", c.data, 240 * c.size);
    ImportOptions from = options(name);
    from.out = folder_ / c.name;
    from.eval_fraction = 0;
    from.source.dtype = c.dtype;
    import_activations(from);
    EXPECT_EQ(ShardIndex::open(from.out).facts().dtype, c.stored);
    EXPECT_EQ(read_all(from.out), rows);
    EXPECT_FALSE(folder_exists(from.out + "/eval"));
  }
  ImportOptions unclear = options("brain.npy");
  const Error error = error_of([&] { import_activations(unclear); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), AllOf(HasSubstr("brain.npy'"), HasSubstr("--dtype bfloat16")));
}

TEST_F(Import, SafetensorsWithTokensAndMask) {
  const std::vector<float> rows = rows_of(40, 3);
  std::vector<int64_t> tokens;
  std::vector<uint8_t> mask;
  for (int64_t i = 0; i < 40; ++i) {
    tokens.push_back(70000 + i);
    mask.push_back(i % 4 != 3);
  }
  write_safetensors(folder_ / "a.safetensors",
                    {{"activation", {4, 10, 3}, view_of(rows.data(), 120)},
                     {"tokens", {4, 10}, view_of(tokens.data(), 40)},
                     {"mask", {4, 10}, view_of(mask.data(), 40)}});
  ImportOptions from = options("a.safetensors");
  from.eval_fraction = 0.25;
  const ImportReport report = import_activations(from);
  EXPECT_EQ(report.masked_rows, 10);
  EXPECT_EQ(report.training_rows + report.eval_rows, 30);
  std::vector<uint32_t> stored(3);
  ShardFile::open(folder_ / "out/shard_000000.h5")
      .read_column("tokens", {2, 5}, view_of(stored.data(), 3));
  EXPECT_THAT(stored, testing::ElementsAre(70002, 70004, 70005));
}

TEST_F(Import, TensorAndDatasetMustBeClear) {
  const std::vector<float> rows = rows_of(10, 2);
  write_safetensors(folder_ / "a.safetensors", {{"p", {10, 2}, view_of(rows.data(), 20)},
                                                {"q", {10, 2}, view_of(rows.data(), 20)}});
  ImportOptions from = options("a.safetensors");
  const Error several = error_of([&] { import_activations(from); });
  EXPECT_EQ(several.code(), ExitCode::usage);
  EXPECT_THAT(several.line(), AllOf(HasSubstr("'p', 'q'"), HasSubstr("--tensor NAME")));
  from.source.tensor = "r";
  EXPECT_THAT(error_of([&] { import_activations(from); }).line(), HasSubstr("it holds p, q"));
  from.source.tensor = "q";
  EXPECT_EQ(import_activations(from).training_rows, 9);  // 0.5 rows are rounded up to one
}

TEST_F(Import, ForeignHdf5SplitsByDocument) {
  const std::vector<float> rows = rows_of(200, 3);
  std::vector<uint32_t> document;
  for (uint32_t i = 0; i < 200; ++i) document.push_back(i / 10);
  {
    Hdf5File file = Hdf5File::create(folder_ / "a.hdf5");
    file.create_dataset("acts", {2, 20, 5, 3}, DType::f32);
    file.write_rows("acts", {0, 2}, view_of(rows.data(), 600));
    file.create_dataset("document", {200}, DType::u32);
    file.write_rows("document", {0, 200}, view_of(document.data(), 200));
    file.close();
  }
  ImportOptions from = options("a.hdf5");
  from.eval_fraction = 0.2;
  const ImportReport report = import_activations(from);
  EXPECT_TRUE(report.split_by_document);
  EXPECT_EQ(report.eval_rows, 40);
  const auto documents_in = [&](const std::string& folder) {
    const ShardFile file = ShardFile::open(folder + "/shard_000000.h5");
    std::vector<uint32_t> values(static_cast<size_t>(file.rows()));
    file.read_column("document", {0, file.rows()}, view_of(values.data(), file.rows()));
    return std::set<uint32_t>(values.begin(), values.end());
  };
  const auto training = documents_in(folder_ / "out"), held = documents_in(folder_ / "out/eval");
  EXPECT_EQ(training.size(), 16u);
  EXPECT_EQ(held.size(), 4u);
  for (uint32_t id : held) EXPECT_FALSE(training.contains(id));
  EXPECT_NE(*held.rbegin(), 3u);  // drawn, not the first four

  std::vector<float> all = read_all(folder_ / "out");
  EXPECT_EQ(static_cast<int64_t>(all.size()), 160 * 3);
  size_t next = 0;
  for (uint32_t i = 0; i < 200; ++i)
    if (training.contains(i / 10)) {
      EXPECT_EQ(all[next], rows[i * 3]);
      next += 3;
    }
}

TEST_F(Import, ReportsNormsAndGamma) {
  const Rng rng{1, Purpose::test, 0};
  std::vector<float> rows(1000 * 8);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(6 + rng.normals(i)[0]);
  for (size_t i = 0; i < 8; ++i) rows[i] = rows[8 * 500 + i] = 1000;
  write_npy(folder_ / "a.npy", "<f4", "(1000, 8)", rows.data(), rows.size() * 4);
  const ImportReport report = import_activations(options("a.npy"));
  EXPECT_NEAR(report.median_norm, std::sqrt(8 * 37.0), 0.2);
  EXPECT_NEAR(report.share_above_10_medians, 0.002, 1e-9);
  const std::vector<std::string> lines = describe(report);
  EXPECT_THAT(lines, Contains(HasSubstr("950 for training, 50 for evaluation")));
  EXPECT_THAT(lines, Contains(HasSubstr("0.2 % of rows above 10 medians")));
  EXPECT_THAT(lines, Contains(HasSubstr("--data.max_norm_multiple 10")));
}

TEST_F(Import, LargeGammaAdvisesToCenter) {
  const Rng rng{1, Purpose::test, 0};
  std::vector<float> rows(500 * 4);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(10 + rng.normals(i)[0]);
  write_npy(folder_ / "a.npy", "<f4", "(500, 4)", rows.data(), rows.size() * 4);
  const ImportReport report = import_activations(options("a.npy"));
  EXPECT_NEAR(report.gamma, 10, 0.5);
  EXPECT_THAT(report.advice, Contains(HasSubstr("--data.center")));
}

TEST_F(Import, RefusesRowsThatAreNotFiniteOrOverflow) {
  std::vector<float> rows = rows_of(100, 3);
  rows[50 * 3 + 2] = INFINITY;
  write_npy(folder_ / "a.npy", "<f4", "(100, 3)", rows.data(), rows.size() * 4);
  const Error error = error_of([&] { import_activations(options("a.npy")); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(),
              AllOf(HasSubstr("a.npy'"), HasSubstr("row 50, column 2 is not finite")));
  EXPECT_TRUE(list_files(folder_.path(), "").size() == 1);  // nothing written remains

  rows[50 * 3 + 2] = 1e6f;
  write_npy(folder_ / "a.npy", "<f4", "(100, 3)", rows.data(), rows.size() * 4);
  ImportOptions half = options("a.npy");
  half.store = "float16";
  EXPECT_THAT(error_of([&] { import_activations(half); }).line(),
              HasSubstr("row 50, column 2 is 1000000, too large for float16"));
}

TEST_F(Import, SeveralFilesMustAgree) {
  const std::vector<float> rows = rows_of(100, 3);
  write_npy(folder_ / "a.npy", "<f4", "(100, 3)", rows.data(), 1200);
  write_npy(folder_ / "b.npy", "<f4", "(60, 5)", rows.data(), 1200);
  const Error error = error_of([&] { import_activations(options("*.npy")); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), AllOf(HasSubstr("a.npy' and '"), HasSubstr("b.npy' do not belong"),
                                  HasSubstr("float32 [.., 3] against float32 [.., 5]")));
  write_npy(folder_ / "b.npy", "<f4", "(100, 3)", rows.data(), 1200);
  const ImportReport report = import_activations(options("*.npy"));
  EXPECT_EQ(report.files, 2);
  EXPECT_EQ(report.training_rows, 190);
}

TEST_F(Import, RefusesWhatItCannotRead) {
  write_file_atomic(folder_ / "a.txt", "hello");
  write_file_atomic(folder_ / "a.npy", "hello");
  const std::vector<float> rows = rows_of(6, 1);
  write_npy(folder_ / "flat.npy", "<f4", "(6,)", rows.data(), 24);
  write_npy(folder_ / "none.npy", "<f4", "(0, 3)", rows.data(), 0);
  const std::vector<int32_t> integers(6);
  write_npy(folder_ / "int.npy", "<i4", "(2, 3)", integers.data(), 24);
  const struct {
    const char *file, *reason;
    ExitCode code;
  } cases[] = {
      {"a.txt", "unknown kind of file. hint: .npy, .safetensors", ExitCode::usage},
      {"a.npy", "a.npy' as .npy: only 5 bytes", ExitCode::bad_data},
      {"missing.npy", "nothing to import", ExitCode::bad_data},
      {"flat.npy", "its array is [6], expected [rows, d]", ExitCode::bad_data},
      {"none.npy", "its array is [0,3]: no rows", ExitCode::bad_data},
      {"int.npy", "its array is int32, not floats", ExitCode::bad_data},
  };
  for (const auto& bad : cases) {
    const Error error = error_of([&] { import_activations(options(bad.file)); });
    EXPECT_EQ(error.code(), bad.code) << bad.file;
    EXPECT_THAT(error.line(), HasSubstr(bad.reason));
  }
  ImportOptions fraction = options("flat.npy");
  fraction.eval_fraction = 1.5;
  EXPECT_EQ(error_of([&] { import_activations(fraction); }).code(), ExitCode::bad_data);
}

// The real activations beside the project: raw float32, so the test adds a .npy header.
TEST_F(Import, RealActivations) {
  const std::string raw = shared_data("tinylm-activations/resid_post_layer2_65536x128_f32.bin");
  if (!file_exists(raw)) GTEST_SKIP() << "no real activations at '" << raw << "'";
  const std::string bytes = read_file(raw);
  write_npy(folder_ / "real.npy", "<f4", "(65536, 128)", bytes.data(), bytes.size());
  const ImportReport report = import_activations(options("real.npy"));
  EXPECT_EQ(report.training_rows, 62259);
  EXPECT_EQ(report.eval_rows, 3277);
  EXPECT_NEAR(report.mean_norm, 2.56, 0.05);
  EXPECT_TRUE(verify_data_set(folder_ / "out").problems.empty());
  std::vector<float> row(128);
  read_rows(ShardIndex::open(folder_ / "out"), {40000}, row.data());
  EXPECT_EQ(std::memcmp(row.data(), bytes.data() + 40000 * 512, 512), 0);
}

}  // namespace
}  // namespace megadict
