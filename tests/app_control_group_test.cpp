#include "app/control_group.h"

#include <gtest/gtest.h>

#include "io/file.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::TempFolder;

// A tree of groups as the system shows them.
struct Tree {
  TempFolder folder;
  std::string root = folder.path();
  void put(const std::string& group, const std::string& file, const std::string& text) const {
    make_folders(root + group);
    write_file_atomic(root + group + "/" + file, text);
  }
  int64_t available(const std::string& membership) const {
    put("", "membership", membership);
    return available_in_group(root + "/membership", root);
  }
};

TEST(ControlGroup, TheTightestGroupOfVersion2Counts) {
  const Tree tree;
  tree.put("/job", "memory.max", "1000");
  tree.put("/job", "memory.current", "700");
  tree.put("/job", "memory.stat", "anon 500\ninactive_file 30\nactive_file 20\n");
  tree.put("/job/step", "memory.max", "max");
  tree.put("/job/step", "memory.current", "600");
  EXPECT_EQ(tree.available("0::/job/step\n"), 350);
  tree.put("/job/step", "memory.max", "800");
  EXPECT_EQ(tree.available("0::/job/step\n"), 200);
  tree.put("/job/step", "memory.current", "900");
  EXPECT_EQ(tree.available("0::/job/step\n"), 0);
}

TEST(ControlGroup, Version1HasATreeOfItsOwn) {
  const Tree tree;
  tree.put("/memory/slurm/job_7", "memory.limit_in_bytes", "5000");
  tree.put("/memory/slurm/job_7", "memory.usage_in_bytes", "4000");
  tree.put("/memory/slurm/job_7", "memory.stat", "total_inactive_file 100\ninactive_file 7\n");
  EXPECT_EQ(tree.available("4:memory:/slurm/job_7/step_0\n3:cpu,cpuacct:/slurm\n0::/\n"), 1100);
}

TEST(ControlGroup, NoLimitIsUnknown) {
  const Tree tree;
  EXPECT_EQ(tree.available("0::/\n"), kUnknownBytes);
  EXPECT_EQ(tree.available(""), kUnknownBytes);
  EXPECT_EQ(available_in_group(tree.root + "/none", tree.root), kUnknownBytes);
}

}  // namespace
}  // namespace megadict
