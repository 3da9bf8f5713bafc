#include "data/shuffle.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/philox.h"
#include "data/inspect.h"
#include "data/row_reader.h"
#include "data/shard_file.h"
#include "io/file.h"
#include "io/hdf5_file.h"
#include "support/shards.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using test::write_shard;
using test::write_shards;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;

std::vector<int64_t> ids_in(const std::string& folder) {
  const ShardIndex index = ShardIndex::open(folder);
  std::vector<float> rows(static_cast<size_t>(index.rows() * 4));
  RowReader(index).read(Range{0, index.rows()}, rows.data());
  std::vector<int64_t> ids;
  for (size_t i = 0; i < rows.size(); i += 4) {
    ids.push_back(static_cast<int64_t>(rows[i]));
    for (int64_t c = 0; c < 4; ++c)
      EXPECT_EQ(rows[i + static_cast<size_t>(c)], test::element(ids.back(), c));
  }
  return ids;
}

TEST(Shuffle, IsAPermutationBySeedWithItsColumns) {
  const TempFolder folder;
  make_folders(folder / "in/eval");
  write_shards(folder / "in", {100, 1, 130});
  write_shard(folder / "in/eval/a.h5", {.rows = 7});
  EXPECT_EQ(shuffle_data_set({folder / "in", folder / "one", 1}), 231);
  EXPECT_EQ(shuffle_data_set({folder / "in", folder / "two", 2}), 231);
  const std::vector<int64_t> one = ids_in(folder / "one"), two = ids_in(folder / "two");
  std::vector<int64_t> sorted = one, all(231);
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(sorted, all);
  EXPECT_NE(one, all);
  EXPECT_NE(one, two);
  std::vector<uint32_t> tokens(231), document(231);
  const ShardFile file = ShardFile::open(folder / "one/shard_000000.h5");
  file.read_column("tokens", {0, 231}, view_of(tokens.data(), 231));
  file.read_column("document", {0, 231}, view_of(document.data(), 231));
  for (size_t i = 0; i < 231; ++i) {
    EXPECT_EQ(tokens[i], one[i] + 1000);
    EXPECT_EQ(document[i], one[i] / 5);
  }
  EXPECT_EQ(ShardIndex::open(folder / "one/eval").rows(), 7);
  EXPECT_EQ(list_files(folder / "one", "").size(), 2u);  // no scratch files
}

TEST(Shuffle, DoesNotDependOnTheMemory) {
  const TempFolder folder;
  make_folders(folder / "in");
  write_shards(folder / "in", {3000, 2000}, {.width = 300, .chunk_rows = 500});
  shuffle_data_set({folder / "in", folder / "small", 5, 1});  // 6 MB through 1 MiB
  shuffle_data_set({folder / "in", folder / "large", 5, 1000});
  EXPECT_EQ(ShardIndex::open(folder / "small").fingerprint(),
            ShardIndex::open(folder / "large").fingerprint());
}

TEST(Shuffle, RefusesBadMemoryAndTakenFolders) {
  const TempFolder folder;
  write_shards(folder.path(), {10});
  EXPECT_EQ(error_of([&] {
              shuffle_data_set({folder.path(), folder / "o", 1, 0});
            }).code(),
            ExitCode::usage);
  EXPECT_EQ(error_of([&] {
              shuffle_data_set({folder.path(), folder.path(), 1});
            }).code(),
            ExitCode::usage);
}

TEST(Info, ListsShardsTotalsAndNorms) {
  const TempFolder folder;
  make_folders(folder / "eval");
  write_shards(folder.path(), {10, 20});
  write_shard(folder / "eval/a.h5", {.rows = 7});
  const std::vector<std::string> lines = data_info(folder.path());
  EXPECT_THAT(lines, Contains(AllOf(HasSubstr("b.h5"), HasSubstr("20"), HasSubstr("float32"),
                                    HasSubstr("tokens,position,document,norm"))));
  EXPECT_THAT(lines, Contains(HasSubstr("rows         30 in 11 chunks, shards: 2")));
  EXPECT_THAT(lines, Contains(HasSubstr("norm         mean")));
  EXPECT_THAT(lines, Contains(HasSubstr("eval         7 rows, shards: 1")));
}

TEST(Info, ShowsShardsThatDisagreeOrAreBroken) {
  const TempFolder folder;
  write_shard(folder / "a.h5", {});
  write_shard(folder / "b.h5", {.width = 5});
  write_file_atomic(folder / "c.h5", "broken");
  const std::vector<std::string> lines = data_info(folder.path());
  EXPECT_THAT(lines, Contains(AllOf(HasSubstr("c.h5"), HasSubstr("not a whole HDF5 file"))));
  EXPECT_THAT(lines, Contains(HasSubstr("unusable     '")));
}

TEST(Verify, FindsEveryProblemAndNamesTheChunk) {
  const TempFolder folder;
  write_shards(folder.path(), {10, 10, 10});
  EXPECT_TRUE(verify_data_set(folder.path()).problems.empty());
  EXPECT_EQ(verify_data_set(folder.path()).chunks, 12);

  for (const auto& [name, row] : {std::pair("a.h5", 0), std::pair("a.h5", 9)}) {
    const int64_t offset = Hdf5File::open(folder / name).chunk_offset("activations", row);
    std::string bytes = read_file(folder / name);
    bytes[static_cast<size_t>(offset)] ^= 1;
    write_file_atomic(folder / name, bytes);
  }
  write_file_atomic(folder / "b.h5", read_file(folder / "b.h5").substr(0, 3000));
  {
    Hdf5File file = Hdf5File::create(folder / "d.h5");
    const std::vector<float> rows = {1, 2, 3, NAN}, norms = {1, 2};
    file.create_dataset("activations", {2, 2}, DType::f32, 1, true);
    file.write_rows("activations", {0, 2}, view_of(rows.data(), 4));
    file.create_dataset("norm", {2}, DType::f32);
    file.write_rows("norm", {0, 2}, view_of(norms.data(), 2));
    file.close();
  }
  const VerifyReport report = verify_data_set(folder.path());
  EXPECT_EQ(report.shards, 4);
  EXPECT_THAT(report.problems,
              testing::ElementsAre(
                  AllOf(HasSubstr("a.h5'"), HasSubstr("chunk 0 (rows 0 to 3)")),
                  AllOf(HasSubstr("a.h5'"), HasSubstr("chunk 3 (rows 9 to 10)")),
                  AllOf(HasSubstr("b.h5'"), HasSubstr("truncated")),
                  AllOf(HasSubstr("d.h5'"), HasSubstr("chunk 0: the norm of row 0 is 2.23")),
                  AllOf(HasSubstr("d.h5'"), HasSubstr("chunk 1: row 1 holds a value"))));
}

}  // namespace
}  // namespace megadict
