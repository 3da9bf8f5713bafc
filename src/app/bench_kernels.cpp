// megadict bench kernels: the local operations of a step, alone.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "app/bench.h"
#include "kernels/kernel_set.h"
#include "kernels/rates.h"
#include "kernels/screen.h"

namespace megadict {

namespace {

constexpr double kRateSeconds = 0.5;
constexpr int64_t kComparedRows = 32;

// Rows whose best latents stand out as those of a trained dictionary do: sums of a few decoder rows
// and noise.
struct Problem {
  KernelBench size;
  at::Tensor w_dec, w_enc, bias, x, g;

  explicit Problem(const KernelBench& options) : size(options) {
    at::manual_seed(1);
    const int64_t n = size.latents, d = size.width, b = size.rows;
    w_dec = at::randn({n, d});
    w_dec = w_dec / w_dec.norm(2, {1}, true);
    w_enc = w_dec * 0.4;
    bias = at::randn({n}) * 0.01;
    const at::Tensor active = at::randint(n, {b, size.k}, at::kLong);
    x = at::randn({b, d}) * (0.3 / std::sqrt(static_cast<double>(d)));
    for (int64_t i = 0; i < size.k; ++i)
      x += w_dec.index_select(0, active.select(1, i)) * at::rand({b, 1});
    g = at::randn({b, d}) * 0.01;
  }

  EncodeArgs args() const { return {x, w_enc, bias}; }
  double encode_flops() const {
    return 2.0 * static_cast<double>(size.rows * size.latents * size.width);
  }
};

// Entries of some rows' lists whose latent is not in the reference's, near ties aside.
void compare_lists(const Problem& problem, const Candidates& got, BenchLine& line) {
  const int64_t rows = std::min(kComparedRows, problem.size.rows);
  const Candidates want = kTensorKernels.topk(
      {problem.x.narrow(0, 0, rows), problem.w_enc, problem.bias}, problem.size.k);
  const at::Tensor same =
      got.value.narrow(0, 0, rows).clamp_min(0).isclose(want.value.clamp_min(0), 1e-4, 1e-5);
  line.compared = same.numel();
  line.wrong = line.compared - same.sum().item<int64_t>();
}

void compare_tensors(const at::Tensor& got, const at::Tensor& want, BenchLine& line) {
  const at::Tensor same = got.isclose(want, 1e-3, 1e-5);
  line.compared = same.numel();
  line.wrong = line.compared - same.sum().item<int64_t>();
}

void bench_screen(const Problem& problem, const ScreenProduct& product, BenchReport& report) {
  const KernelBench& size = problem.size;
  Screen screen(problem.w_enc, product.kind);
  screen.topk(problem.args(), size.k);
  screen.take_stats();
  Candidates found;
  BenchLine line =
      line_of(fmt::format("encode {}", product.name),
              times_of(size.repeats, [&] { found = screen.topk(problem.args(), size.k); }),
              problem.encode_flops(), "GOP/s");
  line.bound = screen_tile_rate(product.kind, size.width, kRateSeconds);
  line.bound_name = fmt::format("{} tiles", product.element);
  compare_lists(problem, found, line);
  report.lines.push_back(line);
  const ScreenStats stats = screen.take_stats();
  const auto per_row = [&](int64_t count) {
    return static_cast<double>(count) / static_cast<double>(stats.rows);
  };
  report.title +=
      fmt::format("\n{} ({}): {:.1f} hits and {:.1f} rescored a row, {:.2f} % again, {} dims apart",
                  product.name, name_of(best_screen_tile(product.kind).isa), per_row(stats.hits),
                  per_row(stats.rescored), 100 * per_row(stats.again), screen.apart().size());
  const double bytes =
      static_cast<double>(4 + product.element_bytes) * static_cast<double>(problem.w_enc.numel());
  report.lines.push_back(line_of(fmt::format("refresh {}", product.name),
                                 times_of(size.repeats, [&] { screen.refresh(problem.w_enc); }),
                                 bytes, "GB/s"));
}

void bench_encode(const Problem& problem, BenchReport& report) {
  const KernelBench& size = problem.size;
  Candidates found;
  BenchLine fp32 =
      line_of("encode fp32",
              times_of(size.repeats, [&] { found = kCpuKernels.topk(problem.args(), size.k); }),
              problem.encode_flops(), "GFLOP/s");
  fp32.bound = sgemm_tile_rate(size.width, kRateSeconds);
  fp32.bound_name = "sgemm tiles";
  compare_lists(problem, found, fp32);
  report.lines.push_back(fp32);
  for (const ScreenProduct& product : all_screen_products())
    if (has_fast_screen(product.kind)) bench_screen(problem, product, report);
}

void bench_sparse(const Problem& problem, BenchReport& report) {
  const KernelBench& size = problem.size;
  const Candidates best = kCpuKernels.topk(problem.args(), size.k);
  const int64_t b = size.rows;
  const Codes codes = kCpuKernels.keep(best, size.latents, at::full({b}, -1e30f),
                                       at::full({b}, kCutAll, at::kLong), 0);
  const double gathered = 4.0 * static_cast<double>(codes.nnz() * size.width);
  const double rows_rate = random_row_rate(size.width, kRateSeconds);
  at::Tensor decoded;
  BenchLine decode = line_of(
      "decode", times_of(size.repeats, [&] { decoded = kCpuKernels.decode(codes, problem.w_dec); }),
      gathered, "GB/s");
  decode.bound = rows_rate;
  decode.bound_name = "random rows";
  compare_tensors(decoded, kTensorKernels.decode(codes, problem.w_dec), decode);
  report.lines.push_back(decode);
  LatentCodes by_latent;
  report.lines.push_back(line_of(
      "codes by latent", times_of(size.repeats, [&] { by_latent = kCpuKernels.by_latent(codes); }),
      64.0 * static_cast<double>(codes.nnz()), "GB/s"));
  for (const Optimiser& optimiser : all_optimisers()) {
    const auto parameter = [&](const at::Tensor& w) {
      Parameter p{w.clone(), {}, {}};
      if (optimiser.first_moment) p.m = at::zeros_like(w);
      if (optimiser.second_moment) p.v = at::zeros_like(w);
      return p;
    };
    LatentRows rows{
        parameter(problem.w_enc), parameter(problem.w_dec), parameter(problem.bias), {}};
    if (optimiser.lazy) rows.last_step_l = at::zeros({size.latents}, at::kLong);
    UpdateArgs update{optimiser.kind, 1e-4, 0.9, 0.999, 1e-8, 1, 1, true};
    const std::vector<GradientSource> sources = {{by_latent, problem.x, problem.g}};
    const auto touched = static_cast<double>(
        optimiser.lazy ? by_latent.latent_start.diff().gt(0).sum().item<int64_t>() : size.latents);
    const double copies = 1 + (optimiser.first_moment ? 1 : 0) + (optimiser.second_moment ? 1 : 0);
    const double bytes =
        2 * gathered + touched * static_cast<double>(size.width) * 4 * 2 * 2 * copies;
    BenchLine line = line_of(fmt::format("row pass {}", optimiser.name),
                             times_of(size.repeats,
                                      [&] {
                                        kCpuKernels.row_pass(sources, rows, update);
                                        ++update.step;
                                      }),
                             bytes, "GB/s");
    line.bound = rows_rate;
    line.bound_name = "random rows";
    report.lines.push_back(line);
  }
}

}  // namespace

BenchReport bench_kernels(const KernelBench& options) {
  const Problem problem(options);
  BenchReport report;
  report.title = fmt::format("kernels: {} rows of width {}, {} latents, k {}", options.rows,
                             options.width, options.latents, options.k);
  bench_encode(problem, report);
  bench_sparse(problem, report);
  return report;
}

}  // namespace megadict
