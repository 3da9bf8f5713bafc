// Reads any part of a checkpoint folder, whatever mesh wrote it (layout: saved.h). Errors: exit 3
// with the file for missing, torn or inconsistent files, and for numbers that are not finite.
#pragma once

#include <string>
#include <vector>

#include "base/range.h"
#include "data/normalization.h"
#include "io/safetensors.h"
#include "model/checkpoint_state.h"

namespace megadict {

class CheckpointReader {
 public:
  explicit CheckpointReader(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const CheckpointState& state() const { return state_; }
  int64_t n() const { return state_.model.n_latents; }
  int64_t d() const { return state_.d; }
  bool has(const std::string& name) const;  // in any part
  // Rows `latents` (global ids) of a tensor that is split over latents.
  void read_rows(const std::string& name, Range latents, BufferView to) const;
  // A tensor that is not split; it lies in part 0.
  void read(const std::string& name, BufferView to) const;
  Normalization normalization() const;

 private:
  struct Part {
    Range latents;
    SafetensorsFile file;
  };
  void check_tensors(const Part& part) const;

  std::string folder_;
  CheckpointState state_;
  std::vector<Part> parts_;
};

}  // namespace megadict
