#include "eval/calibrate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "comm/backends.h"
#include "eval/evaluate.h"
#include "kernels/kernel_set.h"
#include "model/forward.h"

namespace megadict {

namespace {

// Of a batch, before anything is known of the threshold: half of them may be positive and listed.
constexpr int64_t kMostEntries = int64_t{1} << 26, kMostRows = 1024;

// The `most` largest of all values that were added, in any order.
class Largest {
 public:
  explicit Largest(size_t most) : most_(most) {}

  // Values up to it need not be added.
  float bound() const { return bound_; }

  void add(const at::Tensor& values) {
    const auto* begin = values.const_data_ptr<float>();
    values_.insert(values_.end(), begin, begin + values.numel());
    if (values_.size() >= 2 * most_) cut();
  }

  // Descending.
  std::vector<float> take() {
    if (values_.size() > most_) cut();
    std::sort(values_.begin(), values_.end(), std::greater<>());
    return std::move(values_);
  }

 private:
  void cut() {
    const auto last = values_.begin() + static_cast<std::ptrdiff_t>(most_ - 1);
    std::nth_element(values_.begin(), last, values_.end(), std::greater<>());
    bound_ = *last;
    values_.resize(most_);
  }

  size_t most_;
  std::vector<float> values_;
  float bound_ = 0;
};

}  // namespace

Calibration calibrate(const Dictionary& dictionary, const Normalization& normalization,
                      const ShardIndex& data, int64_t rows) {
  const c10::NoGradGuard no_grad;
  const std::unique_ptr<Communicator> world = make_self_communicator("world");
  const Mesh mesh = make_mesh(*world, {1, 1});
  Calibration out;
  out.rows = rows > 0 ? std::min(rows, data.rows()) : data.rows();
  if (out.rows == 0) fail_agreed(ExitCode::bad_data, "the shards to calibrate on hold no rows");
  const auto wanted = static_cast<size_t>(out.rows * dictionary.config.k);
  Largest largest(wanted + 1);
  const int64_t batch_rows = std::clamp<int64_t>(kMostEntries / dictionary.n, 1, kMostRows);
  for (int64_t begin = 0; begin < out.rows; begin += batch_rows) {
    std::vector<int64_t> ids(static_cast<size_t>(std::min(batch_rows, out.rows - begin)));
    std::iota(ids.begin(), ids.end(), begin);
    const Rows batch = gather_rows(mesh, read_owned(mesh, data, ids), dictionary.d, normalization,
                                   dictionary.w_enc_ld.device());
    const at::Tensor xc = seen_by_encoder(dictionary, batch.x_bd);
    largest.add(kernels_for(xc)
                    .above({xc, dictionary.w_enc_ld, dictionary.b_enc_l}, largest.bound())
                    .value.to(at::kCPU));
  }
  const std::vector<float> values = largest.take();
  // Where fewer are positive, all of them pass.
  if (values.size() > wanted)
    out.threshold =
        static_cast<float>((static_cast<double>(values[wanted - 1]) + values[wanted]) / 2);
  const auto passes = [&](float value) { return static_cast<double>(value) > out.threshold; };
  out.l0 = static_cast<double>(std::count_if(values.begin(), values.end(), passes)) /
           static_cast<double>(out.rows);
  return out;
}

}  // namespace megadict
