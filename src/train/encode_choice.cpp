#include "train/encode_choice.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "data/row_reader.h"
#include "model/activations.h"

namespace megadict {

namespace {

// Rows as the encoder sees them.
at::Tensor first_rows(const TrainJob& job, const TrainState& state) {
  const std::vector<int64_t> ids = job.plan->sample(64 * std::max(at::get_num_threads(), 1));
  at::Tensor x = at::empty({static_cast<int64_t>(ids.size()), job.data->width()}, at::kFloat);
  read_rows(*job.data, ids, x.mutable_data_ptr<float>());
  const Normalization& normalization = state.normalization;
  if (!normalization.mean.empty()) x -= at::tensor(normalization.mean);
  return x * normalization.scale - state.dictionary.b_dec_d;
}

struct Rates {
  double fp32 = 0, screen = 0;  // rows/s
};

// Both on as many blocks of rows as there are threads, after a call that is not timed.
Rates measure(const TrainJob& job, const TrainState& state) {
  const Dictionary& dictionary = state.dictionary;
  const at::Tensor x = first_rows(job, state);
  const EncodeArgs args{x, dictionary.w_enc_ld, dictionary.b_enc_l};
  const int64_t k = listed_latents(dictionary.config);
  const auto rate = [&](auto&& encode) {
    encode();
    const double start = seconds_now();
    encode();
    return static_cast<double>(x.size(0)) / (seconds_now() - start);
  };
  Rates rates;
  rates.fp32 = rate([&] { kCpuKernels.topk(args, k); });
  Screen screen(dictionary.w_enc_ld);
  rates.screen = rate([&] { screen.topk(args, k); });
  return rates;
}

// The smallest of all ranks' values.
double least(const Mesh& mesh, double value, const char* name) {
  mesh.world->all_reduce(view_of(&value, 1), ReduceOp::min, name);
  return value;
}

}  // namespace

std::string choose_encode(const Mesh& mesh, const TrainJob& job, const TrainState& state) {
  const std::string& asked = job.kernels.encode;
  if (asked == "fp32") return asked;
  if (job.run.deterministic) {
    // Picked before the run became deterministic; what a user asks for is refused elsewhere.
    if (asked != "auto") note("kernels.encode: fp32 (run.deterministic)");
    return "fp32";
  }
  const bool cuda = job.device.is_cuda();
  const bool tensors = job.kernels.set == "tensor";
  const bool here = !cuda && !tensors && has_fast_screen(isa_in_use()) &&
                    state.dictionary.d <= Screen::kWidestRow;
  const bool everywhere = least(mesh, here ? 1 : 0, "screens available") > 0;
  const auto exact = [](const std::string& why) {
    note("kernels.encode: fp32 (" + why + ")");
    return std::string("fp32");
  };
  const char* no_screen =
      tensors
          ? "kernels.set = tensor has no screen"
          : "some rank has no AVX-512 VNNI, or kernels.isa leaves it out, or there is a GPU, or "
            "rows are wider than 65536";
  if (asked != "auto") {
    if (everywhere) return asked;
    if (job.encode_was_auto) return exact(no_screen);
    fail_agreed(ExitCode::usage, fmt::format("kernels.encode = {}: {}", asked, no_screen),
                "--kernels.encode fp32");
  }
  if (cuda || tensors || !activation_named(job.model.activation).has_k)
    return "fp32";  // nothing to choose from
  const Dictionary& dictionary = state.dictionary;
  if (dictionary.n / mesh.feature_size() < kFewestScreened) return "fp32";
  if (!everywhere) return exact(no_screen);
  const Rates mine = measure(job, state);
  const Rates rates{least(mesh, mine.fp32, "fp32 rate"), least(mesh, mine.screen, "screen rate")};
  if (rates.fp32 >= rates.screen)
    return exact(
        fmt::format("{:.0f} rows/s measured, screen_int8 {:.0f}", rates.fp32, rates.screen));
  note(fmt::format("kernels.encode: screen_int8 ({:.0f} rows/s measured, fp32 {:.0f})",
                   rates.screen, rates.fp32));
  return "screen_int8";
}

}  // namespace megadict
