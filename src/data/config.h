// Where the activations come from and how a batch is cut; the fields `data.*`.
#pragma once

#include <cstdint>
#include <string>

namespace megadict {

struct DataConfig {
  std::string path;                 // folder or glob of shards
  std::string eval_path;            // "" = PATH/eval where it exists
  std::string stage_dir;            // node-local folder that shards are copied to; "" = none
  int64_t batch_size = 4096;        // rows of the global batch
  int64_t micro_batch_size = 0;     // rows of the global micro-batch; 0 = batch_size
  double scale = 1.0;               // every row is multiplied by this first
  std::string normalize = "none";   // none | unit_rms | sqrt_d
  bool center = false;              // subtract the sample mean
  double max_norm_multiple = 0;     // drop rows above this multiple of the median norm; 0 = off
  int64_t tokens = 0;               // training tokens; 0 = one pass
  int64_t shuffle_buffer = 262144;  // rows of a shuffling window
  std::string last_batch = "drop";  // the ragged last batch of an epoch: drop | keep
  int queue = 4;                    // micro-batches read ahead
};

}  // namespace megadict
