#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>

#include "data/batch_stream.h"
#include "data/row_reader.h"
#include "data/shard_file.h"
#include "data/shard_writer.h"
#include "io/file.h"
#include "support/shards.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using test::write_shard;
using test::write_shards;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(Shard, EveryElementTypeRoundTrips) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const TempFolder folder;
    write_shards(folder.path(), {10, 1, 7}, {.dtype = dtype});
    const ShardIndex index = ShardIndex::open(folder.path());
    EXPECT_EQ(index.rows(), 18);
    EXPECT_EQ(index.facts().dtype, dtype);
    EXPECT_EQ(index.facts().model, "tiny");
    EXPECT_EQ(index.facts().layer, 2);
    EXPECT_EQ(index.chunks().size(), 4u + 1 + 3);
    std::vector<float> back(18 * 4);
    RowReader(index).read(Range{0, 18}, back.data());
    for (int64_t row = 0; row < 18; ++row)
      for (int64_t c = 0; c < 4; ++c)
        EXPECT_EQ(back[static_cast<size_t>(row * 4 + c)], test::element(row, c));
  }
}

TEST(Shard, KeepsColumnsAndNorms) {
  const TempFolder folder;
  write_shards(folder.path(), {10});
  const ShardIndex index = ShardIndex::open(folder.path());
  const ShardInfo& info = index.shards()[0];
  EXPECT_TRUE(info.has_tokens && info.has_position && info.has_document && info.has_norm);
  const ShardFile file = ShardFile::open(info.path);
  std::vector<uint32_t> tokens(3);
  file.read_column("tokens", {6, 9}, view_of(tokens.data(), 3));
  EXPECT_THAT(tokens, ElementsAre(1006, 1007, 1008));
  const std::vector<float> norms = row_norms(index, {4, 6});
  std::vector<float> row(4);
  read_rows(index, {5}, row.data());
  EXPECT_FLOAT_EQ(norms[1],
                  std::sqrt(row[0] * row[0] + row[1] * row[1] + row[2] * row[2] + row[3] * row[3]));
}

TEST(Shard, IsReadableByThePlainLibraryWithItsChecksumsOn) {
  const TempFolder folder;
  write_shards(folder.path(), {10});
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  std::vector<float> rows(40);
  file.read_rows("activations", {0, 10}, view_of(rows.data(), 40));
  EXPECT_EQ(rows[9 * 4], 9.0f);
  EXPECT_EQ(file.integer("/", "rows"), 10);
  EXPECT_EQ(file.text("/", "dtype"), "float32");
}

TEST(Shard, ForeignWriterWithoutTablesGivesTheSameFingerprint) {
  const TempFolder folder;
  write_shards(folder.path(), {10});
  make_folders(folder / "foreign");
  {
    Hdf5File file = Hdf5File::create(folder / "foreign/a.h5");
    file.create_dataset("activations", {10, 4}, DType::f32, 3, /*fletcher32=*/true);
    std::vector<float> rows(40);
    RowReader(ShardIndex::open(folder.path())).read(Range{0, 10}, rows.data());
    file.write_rows("activations", {0, 10}, view_of(rows.data(), 40));
    file.set("/", "model", "tiny");
    file.close();
  }
  const ShardIndex ours = ShardIndex::open(folder.path());
  const ShardIndex foreign = ShardIndex::open(folder / "foreign");
  EXPECT_FALSE(foreign.shards()[0].has_norm);
  EXPECT_EQ(ours.fingerprint(), foreign.fingerprint());
  EXPECT_EQ(row_norms(ours, {0, 10}), row_norms(foreign, {0, 10}));
}

TEST(Shard, WriterLeavesNothingUnlessFinished) {
  const TempFolder folder;
  {
    ShardWriter writer(folder / "a.h5", {2, DType::f32, "", "", "", -1});
    const float row[2] = {1, 2};
    writer.append({row, 1});
  }
  EXPECT_THAT(list_files(folder.path(), ""), ElementsAre());
}

TEST(Shard, WriterRefusesRowsThatAreNotFiniteAndEmptyShards) {
  const TempFolder folder;
  ShardWriter writer(folder / "a.h5", {2, DType::f32, "", "", "", -1});
  EXPECT_THAT(error_of([&] { writer.finish(); }).line(), HasSubstr("a.h5': no rows"));
  const float rows[4] = {1, 2, 3, NAN};
  const Error error = error_of([&] { writer.append({rows, 2}); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), AllOf(HasSubstr("a.h5'"), HasSubstr("row 1")));
}

// Stands in for a full disk, which takes a small file system to make: files may not grow past a
// limit. Whatever write meets it (header, chunk, the flush at the end), nothing is left behind.
TEST(Shard, WriteErrorsAtAnySizeExitOneAndLeaveNothing) {
  const TempFolder folder;
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, SIG_IGN);
  for (rlim_t limit : {100, 900, 2000, 5000, 30000, 100000, 500000, 1040000, 1050000}) {
    const rlimit small = {limit, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    const Error error = error_of([&] {
      ShardWriter writer(folder / "a.h5", {64, DType::f32, "", "", "", -1});
      const std::vector<float> rows(64 * 1000, 1.0f);
      for (int i = 0; i < 4; ++i) writer.append({rows.data(), 1000});
      writer.finish();
    });
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_EQ(error.code(), ExitCode::error) << limit;
    EXPECT_THAT(error.line(),
                HasSubstr("cannot write '" + (folder / "a.h5") + "': File too large"));
    EXPECT_THAT(list_files(folder.path(), ""), ElementsAre());
  }
}

TEST(Shard, FlippedByteNamesFileChunkAndRows) {
  const TempFolder folder;
  write_shards(folder.path(), {10});
  const std::string path = folder / "a.h5";
  int64_t offset = 0;
  {
    const Hdf5File file = Hdf5File::open(path);
    offset = file.chunk_offset("activations", 6);
  }
  std::string bytes = read_file(path);
  bytes[static_cast<size_t>(offset) + 5] ^= 1;
  write_file_atomic(path, bytes);
  const ShardIndex index = ShardIndex::open(folder.path());
  std::vector<float> row(4);
  read_rows(index, {5}, row.data());  // another chunk
  const Error error = error_of([&] { read_rows(index, {7}, row.data()); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(),
              AllOf(HasSubstr("a.h5': chunk 2 (rows 6 to 9) does not match its checksum"),
                    HasSubstr("data verify")));
}

// Fletcher-32 of zeros is zero, so a chunk that a crash left as a hole would pass by itself.
TEST(Shard, ChunkLostToZerosIsSeen) {
  const TempFolder folder;
  write_shards(folder.path(), {10});
  const int64_t offset = Hdf5File::open(folder / "a.h5").chunk_offset("activations", 3);
  std::string bytes = read_file(folder / "a.h5");
  std::fill_n(bytes.begin() + offset, 3 * 4 * sizeof(float) + 4, '\0');
  write_file_atomic(folder / "a.h5", bytes);
  std::vector<float> row(4);
  EXPECT_THAT(error_of([&] { read_rows(ShardIndex::open(folder.path()), {4}, row.data()); }).line(),
              HasSubstr("a.h5': chunk 1 (rows 3 to 6) does not match its checksum"));
}

TEST(Shard, TruncatedFileIsNamed) {
  const TempFolder folder;
  write_shards(folder.path(), {100, 10}, {.width = 40});
  const std::string whole = read_file(folder / "b.h5");
  write_file_atomic(folder / "b.h5", whole.substr(0, whole.size() - 100));
  const Error error = error_of([&] { ShardIndex::open(folder.path()); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), AllOf(HasSubstr("b.h5'"), HasSubstr("truncated")));
}

// A shard whose rows were written past our own checks.
void write_unchecked(const std::string& path, const std::vector<float>& rows, int64_t width) {
  Hdf5File file = Hdf5File::create(path);
  const auto count = static_cast<int64_t>(rows.size());
  file.create_dataset("activations", {count / width, width}, DType::f32, 2, true);
  file.write_rows("activations", {0, count / width}, view_of(rows.data(), count));
  file.close();
}

TEST(Shard, RowThatIsNotFiniteIsNamed) {
  const TempFolder folder;
  write_unchecked(folder / "a.h5", {1, 2, 3, 4}, 2);
  write_unchecked(folder / "b.h5", {1, 2, 3, 4, 5, INFINITY}, 2);
  const ShardIndex index = ShardIndex::open(folder.path());
  std::vector<float> row(2);
  const Error error = error_of([&] { read_rows(index, {4}, row.data()); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), AllOf(HasSubstr("b.h5'"), HasSubstr("row 2"), HasSubstr("column 1")));
  EXPECT_THAT(error_of([&] { row_norms(index, {0, 5}); }).line(), HasSubstr("row 2"));
}

TEST(Shard, StatedRowsMustBeThere) {
  const TempFolder folder;
  write_unchecked(folder / "a.h5", {1, 2, 3, 4}, 2);
  {
    Hdf5File file = Hdf5File::create(folder / "b.h5");
    file.create_dataset("activations", {2, 2}, DType::f32, 2, true);
    file.set("/", "rows", int64_t{5});
    file.close();
  }
  const Error error = error_of([&] { ShardIndex::open(folder / "b.h5"); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(),
              AllOf(HasSubstr("b.h5'"), HasSubstr("rows says 5"), HasSubstr("[2,2]")));
}

TEST(Shard, WrongLayoutsAreRefusedWithAHint) {
  const TempFolder folder;
  const struct {
    std::vector<int64_t> shape;
    DType dtype;
    int64_t chunk_rows;
    bool fletcher32;
    const char* reason;
  } cases[] = {
      {{4, 2}, DType::f32, 0, false, "no checksums"},
      {{4, 2}, DType::f32, 2, false, "no checksums"},
      {{4, 2}, DType::f64, 2, true, "'activations' is float64"},
      {{4, 2}, DType::u16, 2, true, "'activations' is uint16"},
      {{4}, DType::f32, 2, true, "1 dimensions"},
      {{0, 2}, DType::f32, 2, true, "[0,2]: no rows"},
  };
  for (const auto& bad : cases) {
    {
      Hdf5File file = Hdf5File::create(folder / "a.h5");
      file.create_dataset("activations", bad.shape, bad.dtype, bad.chunk_rows, bad.fletcher32);
      file.close();
    }
    const Error error = error_of([&] { ShardIndex::open(folder.path()); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.line(), AllOf(HasSubstr("a.h5'"), HasSubstr(bad.reason)));
  }
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.create_dataset("acts", {4, 2}, DType::f32);
    file.close();
  }
  EXPECT_THAT(error_of([&] { ShardIndex::open(folder.path()); }).line(),
              AllOf(HasSubstr("no dataset 'activations'; it holds acts"),
                    HasSubstr("megadict data import")));
}

TEST(ShardIndex, ShardsThatDisagreeAreBothNamed) {
  const struct {
    test::ShardSpec other;
    const char* reason;
  } cases[] = {
      {{.width = 5}, "rows 4 wide against 5"},
      {{.dtype = DType::bf16}, "dtype 'float32' against 'bfloat16'"},
      {{.model = "gpt2"}, "model 'tiny' against 'gpt2'"},
      {{.hook = "mlp"}, "hook 'resid' against 'mlp'"},
      {{.layer = 3}, "layer '2' against '3'"},
  };
  for (const auto& bad : cases) {
    const TempFolder folder;
    write_shard(folder / "a.h5", {});
    write_shard(folder / "b.h5", bad.other);
    const Error error = error_of([&] { ShardIndex::open(folder.path()); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.line(), AllOf(HasSubstr("a.h5'"), HasSubstr("b.h5'"), HasSubstr(bad.reason)));
  }
}

TEST(ShardIndex, FindsFoldersFilesAndPatternsOnly) {
  const TempFolder folder;
  const Error missing = error_of([&] { ShardIndex::open(folder / "none"); });
  EXPECT_EQ(missing.code(), ExitCode::bad_data);
  EXPECT_THAT(missing.line(), HasSubstr("no folder '" + (folder / "none") + "'"));
  const Error empty = error_of([&] { ShardIndex::open(folder.path()); });
  EXPECT_EQ(empty.code(), ExitCode::bad_data);
  EXPECT_THAT(empty.line(), AllOf(HasSubstr("no *.h5 shards"), HasSubstr("data import")));
  make_folders(folder / "resid.9/eval");
  write_shard(folder / "resid.9/a.h5", {});
  write_shard(folder / "resid.9/eval/a.h5", {});
  EXPECT_THAT(error_of([&] { ShardIndex::open(folder.path()); }).line(),
              HasSubstr("it holds the data sets resid.9"));
  EXPECT_EQ(ShardIndex::open(folder / "*/a.h5").rows(), 10);
  EXPECT_EQ(ShardIndex::open(folder / "resid.9").rows(), 10);  // without its eval part
}

TEST(ShardIndex, FingerprintSeesContentNamesAndOrderButNotTheFolder) {
  const TempFolder one, two, three, four;
  write_shards(one.path(), {10, 5});
  write_shards(two.path(), {10, 5});
  write_shards(three.path(), {10, 5}, {.first_row = 1});
  write_shard(four / "c.h5", {.rows = 10});
  write_shard(four / "d.h5", {.rows = 5, .first_row = 10});
  const std::string first = ShardIndex::open(one.path()).fingerprint();
  EXPECT_EQ(first.size(), 16u);
  EXPECT_EQ(first, ShardIndex::open(two.path()).fingerprint());
  EXPECT_NE(first, ShardIndex::open(three.path()).fingerprint());
  EXPECT_NE(first, ShardIndex::open(four.path()).fingerprint());
}

TEST(RowReader, AnyOrderAndRepetitions) {
  const TempFolder folder;
  write_shards(folder.path(), {10, 5});
  const ShardIndex index = ShardIndex::open(folder.path());
  const std::vector<int64_t> rows = {14, 0, 7, 7, 10, 9};
  std::vector<float> back(rows.size() * 4);
  read_rows(index, rows, back.data());
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(back[i * 4], static_cast<float>(rows[i]));
  EXPECT_THAT(error_of([&] { read_rows(index, {15}, back.data()); }).line(),
              HasSubstr("row 15 of a data set of 15"));
}

// `check`: of a chunk's first row, when the chunk is in `bytes`.
template <class Check>
void announce_and_read(ShardPool& pool, const ShardIndex& index, std::vector<std::byte>& bytes,
                       Check&& check) {
  for (const Chunk& chunk : index.chunks()) {
    pool.announce(chunk);
    pool.read(chunk, bytes.data());
    check(chunk.rows.begin);
  }
}

// A hint changes nothing: one chunk, many with columns between them, and a file that has gone.
TEST(Shard, AnnouncedChunksAreReadAsBefore) {
  const TempFolder folder;
  for (int64_t rows : {2, 400}) {
    const std::string path = folder / "a.h5";
    write_shard(path, {.rows = rows, .chunk_rows = 2});
    const ShardIndex index = ShardIndex::open(path);
    ShardPool pool(index);
    std::vector<std::byte> bytes(largest_chunk_bytes(index));
    announce_and_read(pool, index, bytes, [&](int64_t row) {
      EXPECT_EQ(std::vector<std::byte>(bytes.begin(), bytes.begin() + 16),
                test::row_bytes(row, 4, DType::f32));
    });
    remove_file(path);
    ShardPool gone(index);
    gone.announce(index.chunks()[0]);
    EXPECT_EQ(error_of([&] { gone.read(index.chunks()[0], bytes.data()); }).code(),
              ExitCode::bad_data);
  }
}

// Chunks that lie in another order than their numbers: too many places to look up.
TEST(Shard, AFileWrittenOutOfOrderIsReadAllTheSame) {
  constexpr int64_t kChunks = 301, kWidth = 8192, kStride = 11;
  const TempFolder folder;
  const std::string path = folder / "a.h5";
  Hdf5File file = Hdf5File::create(path);
  file.create_dataset("activations", {kChunks, kWidth}, DType::f32, 1, true);
  std::vector<float> row(kWidth);
  for (int64_t i = 0; i < kChunks; ++i) {
    const int64_t at = i * kStride % kChunks;
    std::fill(row.begin(), row.end(), static_cast<float>(at));
    file.write_rows("activations", {at, at + 1}, view_of(row.data(), kWidth));
  }
  file.close();
  const ShardIndex index = ShardIndex::open(path);
  ShardPool pool(index);
  std::vector<std::byte> bytes(largest_chunk_bytes(index));
  announce_and_read(pool, index, bytes, [&](int64_t first) {
    EXPECT_EQ(reinterpret_cast<const float*>(bytes.data())[kWidth - 1], static_cast<float>(first));
  });
}

}  // namespace
}  // namespace megadict
