#include "eval/inference.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "eval/inference_lambda.h"
#include "eval/inference_rows.h"
#include "eval/metrics.h"
#include "model/exact_sums.h"
#include "model/hidden.h"

namespace megadict {

namespace {

constexpr int64_t kBlock = 512;  // rows of a rank that are solved together: bounds memory

// What all rows' codes come to.
struct Score {
  double l0 = 0, error = 0;  // mean; sum of |x - D s|^2
  double seconds = 0;        // of the slowest rank
};

// Adds a block's terms: active codes and squared error of each row.
void write_terms(const at::Tensor& x_bd, const at::Tensor& atoms_nd, const Codes& codes,
                 double* terms_r2) {
  const int64_t d = x_bd.size(1);
  const auto* start = codes.row_start.const_data_ptr<int64_t>();
  const auto* latent = codes.latent.const_data_ptr<int32_t>();
  const auto* value = codes.value.const_data_ptr<float>();
  const auto* x = x_bd.const_data_ptr<float>();
  const auto* atoms = atoms_nd.const_data_ptr<float>();
  at::parallel_for(0, codes.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> rest(static_cast<size_t>(d));
    for (int64_t r = begin; r < end; ++r) {
      std::copy(x + r * d, x + (r + 1) * d, rest.begin());
      for (int64_t e = start[r]; e < start[r + 1]; ++e)
        for (int64_t c = 0; c < d; ++c)
          rest[static_cast<size_t>(c)] -= static_cast<double>(value[e]) * atoms[latent[e] * d + c];
      terms_r2[2 * r] = static_cast<double>(start[r + 1] - start[r]);
      terms_r2[2 * r + 1] = std::inner_product(rest.begin(), rest.end(), rest.begin(), 0.0);
    }
  });
}

// The rows in blocks through `codes_of_block`.
template <class CodesOfBlock>
Score score(const Mesh& mesh, const InferenceRows& rows, const std::string& name,
            CodesOfBlock&& codes_of_block) {
  const int64_t mine = rows.x_bd.size(0);
  const at::Tensor terms = at::zeros({mine, 2}, at::kDouble);
  Score out;
  Progress shown("inference " + name, rows.total, "rows");
  for (int64_t begin = 0; begin < mine; begin += kBlock) {
    const Range block = {begin, std::min(mine, begin + kBlock)};
    const at::Tensor x = rows.x_bd.narrow(0, begin, block.size());
    Codes codes;
    {
      const Timer timer(out.seconds);
      codes = codes_of_block(x, block);
    }
    write_terms(x, rows.atoms_nd, codes, terms.mutable_data_ptr<double>() + 2 * begin);
    shown.at(rows.total * block.end / mine);
  }
  mesh.world->wait_for_all();  // some rows take longer than others
  const at::Tensor l0 = exact_sum(mesh, terms.narrow(1, 0, 1), rows.total, "active codes");
  const at::Tensor error = exact_sum(mesh, terms.narrow(1, 1, 1), rows.total, "squared errors");
  out.l0 = l0.item<double>() / static_cast<double>(rows.total);
  out.error = error.item<double>();
  out.seconds = largest_of_all(mesh, out.seconds, "inference seconds");
  return out;
}

// sum |x - mean x|^2 over all rows.
double spread(const Mesh& mesh, const InferenceRows& rows) {
  const at::Tensor x = rows.x_bd.to(at::kDouble);
  const at::Tensor sums = exact_sum(mesh, x, rows.total, "rows").contiguous();
  const at::Tensor squares =
      exact_sum(mesh, x.square().sum(1, true), rows.total, "squares of rows");
  return scatter(squares.item<double>(),
                 {sums.const_data_ptr<double>(), sums.const_data_ptr<double>() + sums.numel()},
                 static_cast<double>(rows.total));
}

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

class Comparison {
 public:
  Comparison(const Mesh& mesh, const Dictionary& dictionary, const InferenceRows& rows,
             const InferenceArgs& args)
      : mesh_(mesh), rows_(rows), args_(args), spread_(spread(mesh, rows)) {
    encoder_ = score(mesh, rows, "encoder",
                     [&](const at::Tensor&, Range block) { return rows.encoder_codes(block); });
    encoder_.seconds = rows.encode_seconds;
    const bool is_topk = dictionary.config.activation == "topk";
    k_ = is_topk ? std::min(dictionary.config.k, dictionary.n)
                 : std::max<int64_t>(1, std::llround(encoder_.l0));
  }

  double encoder_l0() const { return encoder_.l0; }
  InferenceResult encoder() const { return result("encoder", encoder_); }

  InferenceResult of(const Pursuit& pursuit) const {
    if (pursuit.takes == PursuitTakes::lambda && args_.lambda == 0) return at_equal_l0(pursuit);
    InferenceResult out = result(pursuit.name, run(pursuit, args_.lambda));
    if (pursuit.takes == PursuitTakes::k) out.k = k_;
    if (pursuit.takes == PursuitTakes::lambda) out.lambda = args_.lambda;
    return out;
  }

 private:
  const Mesh& mesh_;
  const InferenceRows& rows_;
  const InferenceArgs& args_;
  double spread_;
  Score encoder_;
  int64_t k_ = 0;

  InferenceResult result(std::string_view method, const Score& of) const {
    InferenceResult out;
    out.method = method;
    out.l0 = of.l0;
    out.fvu = spread_ > 0 ? of.error / spread_ : kNone;
    out.of_encoder = encoder_.error > 0 ? of.error / encoder_.error : kNone;
    out.seconds = of.seconds * 1000 / static_cast<double>(rows_.total);
    return out;
  }

  Score run(const Pursuit& pursuit, double lambda) const {
    constexpr double kStill = 1e-6;
    const PursuitSettings settings = {.k = k_,
                                      .lambda = lambda,
                                      .iterations = 20000,
                                      .still = kStill * lambda,
                                      .restart = true,
                                      .candidates = std::max<int64_t>(16, 2 * k_)};
    return score(mesh_, rows_, std::string(pursuit.name), [&](const at::Tensor& x, Range block) {
      const Codes given = rows_.encoder_codes(block);
      return pursuit.run({x, rows_.atoms_nd, settings, &given});
    });
  }

  InferenceResult at_equal_l0(const Pursuit& pursuit) const {
    std::vector<Score> scores;
    const auto mean_l0 = [&](double lambda) {
      const Score& tried = scores.emplace_back(run(pursuit, lambda));
      note(fmt::format("{}: lambda {:.4g} gives L0 {:.2f}", pursuit.name, lambda, tried.l0));
      return tried.l0;
    };
    const LambdaSearch found = lambda_of_l0(encoder_.l0, first_lambda(mesh_, rows_), mean_l0);
    InferenceResult out = result(pursuit.name, scores[found.best]);
    out.lambda = found.lambda;
    for (const Score& tried : scores) out.search_seconds += tried.seconds;
    out.search_seconds -= scores[found.best].seconds;
    constexpr double kFar = 0.01;
    if (std::abs(out.l0 - encoder_.l0) > kFar * encoder_.l0)
      warn(
          fmt::format("{}: no lambda was found with the encoder's L0, {:.2f}; the nearest, {:.4g}, "
                      "gives {:.2f}",
                      pursuit.name, encoder_.l0, out.lambda, out.l0));
    return out;
  }
};

// Before any method runs: what could not come to an end.
void refuse_l0(const InferenceArgs& args, double l0, int64_t d, int64_t rows) {
  if (!(l0 > 0))
    fail_agreed(ExitCode::bad_data,
                fmt::format("eval.inference: no latent is active on the first {} rows", rows),
                "without codes of the encoder there is nothing to compare with");
  const auto searches = [](const Pursuit* p) { return p->takes == PursuitTakes::lambda; };
  if (args.lambda == 0 && l0 >= static_cast<double>(d) &&
      std::any_of(args.methods.begin(), args.methods.end(), searches))
    fail_agreed(ExitCode::usage,
                fmt::format("eval.inference: the encoder has {:.1f} active latents a row, a lasso "
                            "at most the width, {}: no lambda gives an equal L0",
                            l0, d),
                "give eval.inference_lambda");
}

}  // namespace

InferenceReport compare_inference(const Mesh& mesh, const Dictionary& dictionary,
                                  const Normalization& normalization, const ShardIndex& data,
                                  const InferenceArgs& args) {
  const c10::NoGradGuard no_grad;
  if (has_back(dictionary.config))
    fail_agreed(
        ExitCode::usage,
        "eval.inference with model.decoder = deep: codes of a decoder that is not linear are "
        "no pursuit's");
  const InferenceRows rows = inference_rows(mesh, dictionary, normalization, data,
                                            std::min(args.rows, data.rows()), args.batch_rows);
  const Comparison comparison(mesh, dictionary, rows, args);
  refuse_l0(args, comparison.encoder_l0(), dictionary.d, rows.total);
  InferenceReport report{rows.total, {comparison.encoder()}};
  for (const Pursuit* pursuit : args.methods) report.results.push_back(comparison.of(*pursuit));
  return report;
}

}  // namespace megadict
