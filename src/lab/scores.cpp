#include "lab/scores.h"

#include <ATen/ATen.h>

#include <cmath>

#include "eval/matching.h"

namespace megadict {

namespace {

// A row a feature.
at::Tensor features_of(const Tiles<float>& tiles) {
  at::Tensor out = at::empty({tiles.features(), tiles.samples()});
  auto* to = out.mutable_data_ptr<float>();
  for (int64_t f = 0; f < tiles.features(); ++f)
    for (int64_t i = 0; i < tiles.samples(); ++i) *to++ = tiles.at(i, f);
  return out;
}

}  // namespace

at::Tensor rows_of(const Tiles<float>& tiles) {
  return features_of(tiles).t().contiguous();
}

at::Tensor columns_of(const Learnt<float>& dictionary) {
  at::Tensor rows = at::empty({dictionary.rows, dictionary.cols});
  std::copy(dictionary.value.begin(), dictionary.value.end(), rows.mutable_data_ptr<float>());
  return rows.t().contiguous();
}

double latent_mcc(const Tiles<float>& truth, const Tiles<float>& codes) {
  return match_rows(features_of(truth), features_of(codes), Similarity::pearson).mean;
}

double dictionary_mcc(const Learnt<float>& truth, const Learnt<float>& learnt) {
  return match_rows(columns_of(truth), columns_of(learnt), Similarity::pearson).mean;
}

double dictionary_cosine(const Learnt<float>& truth, const Learnt<float>& learnt) {
  return match_rows(columns_of(truth), columns_of(learnt), Similarity::cosine).mean;
}

RandomBaseline random_baseline(const Learnt<float>& truth, int64_t latents, uint64_t seed) {
  constexpr int kDraws = 10;
  RandomBaseline mean;
  for (uint64_t draw = 0; draw < kDraws; ++draw) {
    Learnt<float> random("random", truth.rows, latents);
    draw_normal(random, seed, draw);
    mean.mcc += dictionary_mcc(truth, random) / kDraws;
    mean.cosine += dictionary_cosine(truth, random) / kDraws;
  }
  return mean;
}

double correlation(const Tiles<float>& first, int64_t a, const Tiles<float>& second, int64_t b) {
  constexpr double kStill = 1e-12;
  const auto n = static_cast<double>(first.samples());
  double x = 0, y = 0, xx = 0, yy = 0, xy = 0;
  for (int64_t i = 0; i < first.samples(); ++i) {
    const double u = first.at(i, a), v = second.at(i, b);
    x += u;
    y += v;
    xx += u * u;
    yy += v * v;
    xy += u * v;
  }
  const double of_x = xx / n - x * x / n / n, of_y = yy / n - y * y / n / n;
  return of_x < kStill || of_y < kStill ? 0 : (xy / n - x * y / n / n) / std::sqrt(of_x * of_y);
}

double known_codes_score(const Tiles<float>& truth, const Tiles<float>& codes) {
  constexpr double kStill = 1e-12;
  at::Tensor a = features_of(truth).to(at::kDouble), b = features_of(codes).to(at::kDouble);
  a = a - a.mean(1, true);
  b = b - b.mean(1, true);
  const at::Tensor spread = (a.square().mean(1) * b.square().mean(1)).sqrt();
  const at::Tensor r =
      at::where(spread > kStill, (a * b).mean(1) / spread, at::zeros({}, a.options()));
  return r.mean().item<double>();
}

double l0_fraction(const Tiles<float>& codes, double threshold) {
  int64_t active = 0;
  for (const float z : codes.values()) active += std::abs(z) > threshold ? 1 : 0;
  return static_cast<double>(active) / static_cast<double>(codes.values().size());
}

std::vector<double> superposition(const Learnt<float>& dictionary) {
  at::Tensor rows = columns_of(dictionary).to(at::kDouble);
  rows = rows / rows.norm(2, {1}, true);
  const at::Tensor score =
      (at::mm(rows, rows.t()).square().sum(1) - 1).clamp_min(0).sqrt().contiguous();
  const auto* first = score.const_data_ptr<double>();
  return {first, first + score.numel()};
}

}  // namespace megadict
