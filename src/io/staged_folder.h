// A folder that appears only when everything in it is complete.
#pragma once

#include <string>

namespace megadict {

// Under construction: files go into path(), commit() gives it its name. Without commit() it is
// removed with all its files.
class StagedFolder {
 public:
  // Exit 2 where `final_path` exists and is not an empty folder, 1 where none can be made.
  explicit StagedFolder(const std::string& final_path);
  ~StagedFolder();
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  const std::string& path() const { return path_; }
  void commit();

 private:
  std::string final_path_, path_;
  bool committed_ = false;
};

}  // namespace megadict
