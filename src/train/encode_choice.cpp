#include "train/encode_choice.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/agree.h"
#include "data/row_reader.h"
#include "model/activations.h"
#include "model/forward.h"

namespace megadict {

namespace {

// Rows as the encoder sees them.
at::Tensor first_rows(const Mesh& mesh, const TrainJob& job, const TrainState& state) {
  const std::vector<int64_t> ids = job.plan->sample(64 * std::max(at::get_num_threads(), 1));
  at::Tensor x = at::empty({static_cast<int64_t>(ids.size()), job.data->width()}, at::kFloat);
  agree(*mesh.world, [&] { read_rows(*job.data, ids, x.mutable_data_ptr<float>()); });
  const Normalization& normalization = state.normalization;
  if (!normalization.mean.empty()) x -= at::tensor(normalization.mean);
  return seen_by_encoder(state.dictionary, x * normalization.scale);
}

// Rows/s of one way to encode, the slowest rank's.
struct Way {
  std::string_view name;
  double rate = 0;
};

// On as many blocks of rows as there are threads, after a call that is not timed.
double rate_of(const at::Tensor& x, const std::function<void()>& encode) {
  encode();
  const double start = seconds_now();
  encode();
  return static_cast<double>(x.size(0)) / (seconds_now() - start);
}

// The smallest of all ranks' values.
double least(const Mesh& mesh, double value, const char* name) {
  mesh.world->all_reduce(view_of(&value, 1), ReduceOp::min, name);
  return value;
}

bool everywhere(const Mesh& mesh, bool here) {
  return least(mesh, here ? 1 : 0, "screens available") > 0;
}

constexpr int64_t kMostMeasured = 65536;  // latents

// fp32 and the screens that every rank has, measured on some of a shard's latents (a copy of all in
// bf16 may not fit); the fastest first. Collective over the mesh.
std::vector<Way> measure(const Mesh& mesh, const TrainJob& job, const TrainState& state,
                         std::span<const ScreenProduct* const> screens) {
  const Dictionary& dictionary = state.dictionary;
  const at::Tensor x = first_rows(mesh, job, state);
  const int64_t some = std::min(kMostMeasured, dictionary.latents.size());
  const at::Tensor w_enc = dictionary.w_enc_ld.narrow(0, 0, some);
  const EncodeArgs args{x, w_enc, dictionary.b_enc_l.narrow(0, 0, some)};
  const int64_t k = std::min(listed_latents(dictionary.config), some);
  std::vector<Way> ways = {{"fp32", rate_of(x, [&] { kCpuKernels.topk(args, k); })}};
  for (const ScreenProduct* product : screens) {
    Screen screen(w_enc, product->kind);
    ways.push_back({product->name, rate_of(x, [&] { screen.topk(args, k); })});
  }
  for (Way& way : ways) way.rate = least(mesh, way.rate, "encode rate");
  std::stable_sort(ways.begin(), ways.end(),
                   [](const Way& a, const Way& b) { return a.rate > b.rate; });
  return ways;
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
  std::vector<const ScreenProduct*> screens;  // that every rank has
  const bool possible =
      !cuda && !tensors && state.dictionary.w_enc_ld.size(1) <= Screen::kWidestRow;
  for (const ScreenProduct& product : all_screen_products())
    if (everywhere(mesh, possible && has_fast_screen(product.kind))) screens.push_back(&product);
  const auto exact = [](const std::string& why) {
    note("kernels.encode: fp32 (" + why + ")");
    return std::string("fp32");
  };
  const std::string no_screen =
      tensors    ? "kernels.set = tensor has no screen"
      : cuda     ? "a GPU has no screen"
      : possible ? fmt::format("no instructions for it, at least on some rank, in {}",
                               name_of(isa_in_use()))
                 : fmt::format("rows wider than {} have no screen", Screen::kWidestRow);
  if (asked != "auto") {
    if (std::ranges::count(screens, asked, &ScreenProduct::name) > 0) return asked;
    if (job.encode_was_auto) return exact(no_screen);
    fail_agreed(ExitCode::usage, fmt::format("kernels.encode = {}: {}", asked, no_screen),
                "--kernels.encode fp32");
  }
  if (cuda || tensors || !activation_named(job.model.activation).has_k)
    return "fp32";  // nothing to choose from
  const Dictionary& dictionary = state.dictionary;
  if (dictionary.n / mesh.feature_size() < kFewestScreened) return "fp32";
  if (screens.empty()) return exact(no_screen);
  const std::vector<Way> ways = measure(mesh, job, state, screens);
  std::string others;
  for (size_t i = 1; i < ways.size(); ++i)
    others += fmt::format(", {} {:.0f}", ways[i].name, ways[i].rate);
  note(fmt::format("kernels.encode: {} ({:.0f} rows/s measured{}; over {} latents)", ways[0].name,
                   ways[0].rate, others, std::min(kMostMeasured, dictionary.latents.size())));
  return std::string(ways[0].name);
}

}  // namespace megadict
