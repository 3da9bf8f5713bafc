// Floating-point operations as seed 003 counts them (O'Neill et al., arXiv 2411.13117, equations 17
// to 31), in two modes. `paper` keeps two slips of theirs: equation 18 multiplies a cost that is
// already of the full batch by the number of samples, and 25 and 29 charge the weight update to
// every sample. `consistent` charges once a step what does not depend on the sample.
#pragma once

#include <cstdint>

namespace megadict {

enum class FlopMode { paper, consistent };

struct FlopShape {
  int64_t width = 8;       // M
  int64_t latents = 16;    // N
  int64_t hidden = 0;      // h of the MLP encoder
  int64_t samples = 1024;  // n
  int64_t batch = 1024;    // b
  bool learns_dictionary = true;
};

// Of `steps` training steps.
int64_t sae_training_flops(const FlopShape& shape, int64_t steps, FlopMode mode);
int64_t mlp_training_flops(const FlopShape& shape, int64_t steps, FlopMode mode);
int64_t coding_training_flops(const FlopShape& shape, int64_t steps, FlopMode mode);
// Of the codes and reconstructions of all samples.
int64_t sae_inference_flops(const FlopShape& shape);     // (26)
int64_t mlp_inference_flops(const FlopShape& shape);     // (30)
int64_t coding_inference_flops(const FlopShape& shape);  // (17)
// Codes optimised for a given dictionary (31).
int64_t ito_flops(const FlopShape& shape, int64_t iterations);

}  // namespace megadict
