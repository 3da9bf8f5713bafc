// Reads any part of a checkpoint folder, whatever mesh wrote it (layout: saved.h). Errors: exit 3
// with the file for missing, torn or inconsistent files.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/range.h"
#include "io/safetensors.h"

namespace megadict {

class CheckpointReader {
 public:
  explicit CheckpointReader(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const nlohmann::json& state() const { return state_; }
  int64_t n() const { return n_; }
  int64_t d() const { return d_; }
  bool has(const std::string& name) const;  // in any part
  // Rows `latents` (global ids) of a tensor that is split over latents.
  void read_rows(const std::string& name, Range latents, BufferView to) const;
  // A tensor that is not split; it lies in part 0.
  void read(const std::string& name, BufferView to) const;

 private:
  struct Part {
    Range latents;
    SafetensorsFile file;
  };
  std::string folder_;
  nlohmann::json state_;
  int64_t n_ = 0, d_ = 0;
  std::vector<Part> parts_;
};

}  // namespace megadict
