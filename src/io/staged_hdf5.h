// An HDF5 file that appears at its path only when complete; without commit() nothing is left.
#pragma once

#include <optional>
#include <string>

#include "io/hdf5_file.h"

namespace megadict {

class StagedHdf5 {
 public:
  explicit StagedHdf5(const std::string& path);  // exit 1 where it cannot be written
  ~StagedHdf5();
  StagedHdf5(const StagedHdf5&) = delete;
  StagedHdf5& operator=(const StagedHdf5&) = delete;

  Hdf5File& file() { return *file_; }
  // Closes, makes durable and renames.
  void commit();

 private:
  std::string path_, temporary_;
  std::optional<Hdf5File> file_;
};

}  // namespace megadict
