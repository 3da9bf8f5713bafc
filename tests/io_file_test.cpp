#include "io/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "io/raw_read.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(AtomicFile, IsInvisibleBeforeCommitAndLeavesNothingWithoutIt) {
  const TempFolder folder;
  write_file_atomic(folder / "a", "old");
  {
    AtomicFile file(folder / "a");
    file.write("new and longer");
    EXPECT_EQ(read_file(folder / "a"), "old");
  }
  EXPECT_EQ(read_file(folder / "a"), "old");
  AtomicFile file(folder / "a");
  file.write("new");
  file.commit();
  EXPECT_EQ(read_file(folder / "a"), "new");
  EXPECT_THAT(list_files(folder.path(), ""), ElementsAre(folder / "a"));
}

TEST(AtomicFile, WritesToADeviceAndNeverReplacesIt) {
  const TempFolder folder;
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  write_file_atomic(pipe, "numbers");
  char got[16] = "";
  EXPECT_EQ(::read(reader, got, sizeof(got)), 7);
  ::close(reader);
  EXPECT_STREQ(got, "numbers");
  struct stat facts = {};
  ASSERT_EQ(::stat(pipe.c_str(), &facts), 0);
  EXPECT_TRUE(S_ISFIFO(facts.st_mode));
  EXPECT_THAT(list_files(folder.path(), ""), ElementsAre(pipe));
}

TEST(AtomicFile, RefusesAFolderBeforeAnythingIsWritten) {
  const TempFolder folder;
  const Error error = error_of([&] { AtomicFile file(folder.path()); });
  EXPECT_EQ(error.code(), ExitCode::error);
  EXPECT_THAT(error.line(), HasSubstr("Is a directory"));
}

TEST(AtomicFile, MissingFolderIsAnErrorWithThePath) {
  const Error error = error_of([] { write_file_atomic("/nonexistent_folder/x", "y"); });
  EXPECT_EQ(error.code(), ExitCode::error);
  EXPECT_THAT(error.line(), HasSubstr("'/nonexistent_folder/x': No such file"));
}

TEST(WriteFully, FullDiskExitsOneWithThePath) {
  const int descriptor = ::open("/dev/full", O_WRONLY);
  ASSERT_GE(descriptor, 0);
  const Error error = error_of([&] { write_fully(descriptor, "x", 1, "runs/a/file"); });
  ::close(descriptor);
  EXPECT_EQ(error.code(), ExitCode::error);
  EXPECT_THAT(error.line(), HasSubstr("cannot write 'runs/a/file': No space left on device"));
}

TEST(ListFiles, AreSortedBytewise) {
  const TempFolder folder;
  for (const char* name : {"b.h5", "a.h5", "B.h5", "a.txt", "10.h5", "9.h5"})
    write_file_atomic(folder / name, "");
  EXPECT_THAT(list_files(folder.path(), ".h5"),
              ElementsAre(folder / "10.h5", folder / "9.h5", folder / "B.h5", folder / "a.h5",
                          folder / "b.h5"));
  EXPECT_THAT(glob_files(folder / "[ab].*"),
              ElementsAre(folder / "a.h5", folder / "a.txt", folder / "b.h5"));
  EXPECT_THAT(glob_files(folder / "z*"), ElementsAre());
}

TEST(ListFiles, MissingFolderIsBadData) {
  const Error error = error_of([] { list_files("/nonexistent_folder", ".h5"); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), HasSubstr("'/nonexistent_folder': No such file"));
}

TEST(RandomAccessFile, RefusesToReadPastTheEnd) {
  const TempFolder folder;
  write_file_atomic(folder / "a", "12345");
  const RandomAccessFile file(folder / "a");
  char text[4] = {};
  file.read(2, text, 3);
  EXPECT_STREQ(text, "345");
  const Error error = error_of([&] { file.read(3, text, 3); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), HasSubstr("ends at byte 5"));
  EXPECT_THAT(error_of([&] { RandomAccessFile whole(folder.path()); }).line(),
              HasSubstr("Is a directory"));
}

TEST(RandomAccessFile, TakesAnnouncementsOfAnything) {
  const TempFolder folder;
  write_file_atomic(folder / "a", "12345");
  const RandomAccessFile file(folder / "a");
  for (int64_t offset : {-100, 0, 4, 100}) file.announce(offset, 50);
}

// What a cache holds cannot be asked of every file system; that reading goes on as before can.
TEST(RawRead, ReadsWithAndWithoutTheCache) {
  const TempFolder folder;
  const std::string path = folder / "a";
  write_file_atomic(path, std::string(3'000'001, 'x'));
  drop_from_cache(path);
  EXPECT_GE(read_in_order(path), 0.0);
  EXPECT_EQ(cached_bytes(path), 3'000'001);
  const auto direct = read_past_cache(path);
  if (direct) {
    EXPECT_GE(*direct, 0.0);
  }
  write_file_atomic(path, "");
  EXPECT_EQ(cached_bytes(path), 0);
  EXPECT_THAT(error_of([&] { read_in_order(folder / "b"); }).line(), HasSubstr("No such file"));
}

TEST(Rename, MovesAFolder) {
  const TempFolder folder;
  make_folders(folder / "step.tmp/deep");
  write_file_atomic(folder / "step.tmp/deep/x", "1");
  rename_durably(folder / "step.tmp", folder / "step");
  EXPECT_TRUE(file_exists(folder / "step/deep/x"));
  EXPECT_FALSE(folder_exists(folder / "step.tmp"));
}

}  // namespace
}  // namespace megadict
