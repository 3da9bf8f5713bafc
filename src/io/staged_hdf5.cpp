#include "io/staged_hdf5.h"

#include <fmt/format.h>
#include <unistd.h>

#include "io/file.h"

namespace megadict {

StagedHdf5::StagedHdf5(const std::string& path)
    : path_(path), temporary_(fmt::format("{}.tmp-{}", path, ::getpid())) {
  file_ = Hdf5File::create(temporary_, path_);
}

StagedHdf5::~StagedHdf5() {
  if (!file_) return;
  file_.reset();
  ::unlink(temporary_.c_str());
}

void StagedHdf5::commit() {
  file_->close();
  sync_file(temporary_);
  rename_durably(temporary_, path_);
  file_.reset();
}

}  // namespace megadict
