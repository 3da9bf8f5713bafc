#include "data/synth.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/philox.h"
#include "base/progress.h"
#include "data/rows.h"
#include "data/shard_set.h"
#include "io/safetensors.h"
#include "io/staged_folder.h"

namespace megadict {

namespace {

// Streams of Purpose::synth_code, kept apart in the upper bits of the draw number.
enum class Part : uint64_t { count = 0, index = 1, value = 2, race = 3, group = 4, member = 5 };

// Draw `number` (at most 2^32) of a row; Rng takes 16 bits of it as draw and the rest as step.
struct RowRandom {
  uint64_t seed;
  uint64_t row;

  Rng rng(Part part, uint64_t number) const {
    return {seed, Purpose::synth_code, (static_cast<uint64_t>(part) << 32) | (number >> 16)};
  }
  uint64_t bits(Part part, uint64_t number) const {
    return rng(part, number).bits64(row, static_cast<uint32_t>(number & 0xFFFF));
  }
  double uniform(Part part, uint64_t number) const {
    return static_cast<double>(bits(part, number) >> 11) * 0x1p-53;
  }
  double normal(Part part, uint64_t number) const {
    return rng(part, number).normals(row, static_cast<uint32_t>(number & 0xFFFF))[0];
  }
  // Uniform on [0, n): the high half of a 128-bit product.
  int64_t below(Part part, uint64_t number, int64_t n) const {
    const auto product =
        static_cast<unsigned __int128>(bits(part, number)) * static_cast<unsigned __int128>(n);
    return static_cast<int64_t>(product >> 64);
  }
};

bool contains(const std::vector<int64_t>& values, int64_t value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

// K distinct indices, all sets equally likely: R. Floyd's method.
std::vector<int64_t> draw_uniform(const RowRandom& random, int64_t n, int64_t k) {
  std::vector<int64_t> drawn;
  for (int64_t j = n - k; j < n; ++j) {
    const int64_t candidate = random.below(Part::index, static_cast<uint64_t>(j - n + k), j + 1);
    drawn.push_back(contains(drawn, candidate) ? j : candidate);
  }
  return drawn;
}

// The k smallest of all not yet drawn by key(j).
template <class Key>
void take_smallest(int64_t n, int64_t k, std::vector<int64_t>& drawn, Key key) {
  std::vector<std::pair<double, int64_t>> keyed;
  for (int64_t j = 0; j < n; ++j)
    if (!contains(drawn, j)) keyed.emplace_back(key(j), j);
  std::nth_element(keyed.begin(), keyed.begin() + (k - 1), keyed.end());
  for (int64_t i = 0; i < k; ++i) drawn.push_back(keyed[static_cast<size_t>(i)].second);
}

// Sequential draws by weight with renormalisation: drawing again until the index is new is the
// same. When nearly all weight is drawn, an exponential race among the rest (Efraimidis and
// Spirakis 2006) has the same distribution and a bounded cost.
std::vector<int64_t> draw_weighted(const RowRandom& random, const std::vector<double>& weight,
                                   const std::vector<double>& cumulative, int64_t k) {
  constexpr uint64_t kMaxTries = 4096;
  const auto n = static_cast<int64_t>(weight.size());
  std::vector<int64_t> drawn;
  for (uint64_t tries = 0; static_cast<int64_t>(drawn.size()) < k && tries < kMaxTries; ++tries) {
    const double at = random.uniform(Part::index, tries) * cumulative.back();
    const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), at);
    const int64_t index = std::min(n - 1, static_cast<int64_t>(found - cumulative.begin()));
    if (!contains(drawn, index)) drawn.push_back(index);
  }
  const int64_t missing = k - static_cast<int64_t>(drawn.size());
  if (missing > 0)
    take_smallest(n, missing, drawn, [&](int64_t j) {
      const double u = random.uniform(Part::race, static_cast<uint64_t>(j));
      return -std::log1p(-u) / weight[static_cast<size_t>(j)];
    });
  return drawn;
}

std::vector<int64_t> draw_correlated(const RowRandom& random, int64_t n, int64_t k, double rho) {
  constexpr int64_t kGroup = 4;
  std::vector<int64_t> drawn;
  take_smallest(n, k, drawn, [&](int64_t j) {
    const double group = random.normal(Part::group, static_cast<uint64_t>(j / kGroup));
    const double member = random.normal(Part::member, static_cast<uint64_t>(j));
    return -(std::sqrt(rho) * group + std::sqrt(1 - rho) * member);
  });
  return drawn;
}

void check_options(const SynthOptions& o) {
  const auto refuse = [](const std::string& what, const char* allowed) {
    fail(ExitCode::usage, what, allowed);
  };
  if (o.n_latents < 1 || o.n_latents > (int64_t{1} << 32))
    refuse(fmt::format("n_latents is {}", o.n_latents), "1 to 2^32");
  if (o.width < 1 || o.width > kMostWidth) refuse(fmt::format("d is {}", o.width), "1 to 131072");
  if (o.k < 1 || o.k > o.n_latents) refuse(fmt::format("k is {}", o.k), "1 to n_latents");
  if (o.sign != "half" && o.sign != "signed")
    refuse(fmt::format("sign is '{}'", o.sign), "half or signed");
  if (!(o.noise_std >= 0)) refuse(fmt::format("noise_std is {}", o.noise_std), "0 or more");
  if (!(o.zipf >= 0)) refuse(fmt::format("zipf is {}", o.zipf), "0 (uniform) or more");
  if (o.k_dist != "fixed" && o.k_dist != "uniform")
    refuse(fmt::format("k_dist is '{}'", o.k_dist), "fixed or uniform");
  if (o.k_dist == "uniform" && 2 * o.k - 1 > o.n_latents)
    refuse(fmt::format("k is {} with k_dist uniform", o.k), "2k - 1 at most n_latents");
  if (!(o.correlation >= 0 && o.correlation <= 1))
    refuse(fmt::format("correlation is {}", o.correlation), "0 to 1");
  if (o.correlation > 0 && o.zipf > 0) refuse("correlation and zipf are both set", "one of them");
}

std::vector<float> make_dictionary(const SynthOptions& o) {
  std::vector<float> dictionary(static_cast<size_t>(o.n_latents * o.width));
  const Rng rng{o.seed, Purpose::synth_dictionary, 0};
  std::vector<double> atom(static_cast<size_t>(o.width) + 1);
  for (int64_t j = 0; j < o.n_latents; ++j) {
    double square = 0;
    for (int64_t i = 0; i < o.width; i += 2) {
      const auto pair = rng.normals(static_cast<uint64_t>(j), static_cast<uint32_t>(i / 2));
      for (int64_t p = 0; p < 2 && i + p < o.width; ++p) {
        atom[static_cast<size_t>(i + p)] = pair[static_cast<size_t>(p)];
        square += pair[static_cast<size_t>(p)] * pair[static_cast<size_t>(p)];
      }
    }
    for (int64_t i = 0; i < o.width; ++i)
      dictionary[static_cast<size_t>(j * o.width + i)] =
          static_cast<float>(atom[static_cast<size_t>(i)] / std::sqrt(square));
  }
  return dictionary;
}

}  // namespace

SynthSource::SynthSource(const SynthOptions& options) : options_(options) {
  check_options(options);
  dictionary_ = make_dictionary(options);
  if (options.zipf == 0) return;
  weight_.resize(static_cast<size_t>(options.n_latents));
  for (size_t i = 0; i < weight_.size(); ++i)
    weight_[i] = std::pow(static_cast<double>(i + 1), -options.zipf);
  const double sum = std::accumulate(weight_.begin(), weight_.end(), 0.0);
  for (double& weight : weight_) weight /= sum;
  cumulative_.resize(weight_.size());
  std::partial_sum(weight_.begin(), weight_.end(), cumulative_.begin());
}

SynthCode SynthSource::code(int64_t row) const {
  const RowRandom random{options_.seed, static_cast<uint64_t>(row)};
  const int64_t n = options_.n_latents;
  int64_t k = options_.k;
  if (options_.k_dist == "uniform") k = 1 + random.below(Part::count, 0, 2 * k - 1);
  SynthCode code;
  if (options_.correlation > 0)
    code.latents = draw_correlated(random, n, k, options_.correlation);
  else if (!weight_.empty())
    code.latents = draw_weighted(random, weight_, cumulative_, k);
  else
    code.latents = draw_uniform(random, n, k);
  std::sort(code.latents.begin(), code.latents.end());
  for (int64_t latent : code.latents) {
    double value = random.normal(Part::value, static_cast<uint64_t>(latent));
    if (options_.sign == "half") value = std::fabs(value);
    if (!weight_.empty()) value *= weight_[static_cast<size_t>(latent)] + 0.1;
    code.values.push_back(value);
  }
  return code;
}

void SynthSource::activation(int64_t row, float* x) const {
  const int64_t d = options_.width;
  std::vector<double> sum(static_cast<size_t>(d));
  const SynthCode active = code(row);
  for (size_t a = 0; a < active.latents.size(); ++a) {
    const float* atom = dictionary_.data() + active.latents[a] * d;
    for (int64_t i = 0; i < d; ++i) sum[static_cast<size_t>(i)] += active.values[a] * atom[i];
  }
  const Rng noise{options_.seed, Purpose::synth_noise, 0};
  for (int64_t i = 0; i < d && options_.noise_std > 0; i += 2) {
    const auto pair = noise.normals(static_cast<uint64_t>(row), static_cast<uint32_t>(i / 2));
    for (int64_t p = 0; p < 2 && i + p < d; ++p)
      sum[static_cast<size_t>(i + p)] += options_.noise_std * pair[static_cast<size_t>(p)];
  }
  for (int64_t i = 0; i < d; ++i) x[i] = static_cast<float>(sum[static_cast<size_t>(i)]);
}

int64_t eval_rows_of(int64_t rows, double eval_fraction) {
  if (!(eval_fraction >= 0 && eval_fraction < 1))
    fail(ExitCode::usage, fmt::format("eval_fraction is {}", eval_fraction), "0 or more, below 1");
  if (eval_fraction == 0) return 0;
  if (rows < 2)
    fail(ExitCode::usage, fmt::format("{} rows cannot be split for evaluation", rows),
         "eval_fraction 0");
  const auto wanted = static_cast<int64_t>(std::llround(eval_fraction * static_cast<double>(rows)));
  return std::clamp<int64_t>(wanted, 1, rows - 1);
}

namespace {

void write_truth(const std::string& path, const SynthSource& source) {
  const SynthOptions& o = source.options();
  const auto& dictionary = source.dictionary();
  write_safetensors(path,
                    {{"W_dec",
                      {o.n_latents, o.width},
                      view_of(dictionary.data(), static_cast<int64_t>(dictionary.size()))}},
                    {{"k", std::to_string(o.k)},
                     {"k_dist", o.k_dist},
                     {"sign", o.sign},
                     {"noise_std", fmt::format("{}", o.noise_std)},
                     {"zipf", fmt::format("{}", o.zipf)},
                     {"correlation", fmt::format("{}", o.correlation)},
                     {"seed", std::to_string(o.seed)}});
}

}  // namespace

std::pair<int64_t, int64_t> write_synth(const SynthDataset& dataset) {
  if (dataset.rows < 1) fail(ExitCode::usage, fmt::format("rows is {}", dataset.rows), "1 or more");
  const SynthSource source(dataset.options);
  const int64_t eval_rows = eval_rows_of(dataset.rows, dataset.eval_fraction);
  const int64_t width = dataset.options.width;
  const DatasetFacts facts{width, activation_dtype(dataset.dtype), "synth", "synth", "", -1};

  StagedFolder folder(dataset.out);
  ShardSetWriter training(folder.path(), facts), evaluation(folder.path() + "/eval", facts);
  std::vector<float> x(static_cast<size_t>(width));
  std::vector<std::byte> stored(static_cast<size_t>(width) * size_of(facts.dtype));
  Progress shown("synth", dataset.rows, "rows");
  for (int64_t row = 0; row < dataset.rows; ++row) {
    source.activation(row, x.data());
    convert_from_float(x.data(), width, facts.dtype, stored.data());
    ShardSetWriter& writer = row < dataset.rows - eval_rows ? training : evaluation;
    writer.append({stored.data(), 1, nullptr, nullptr, nullptr});
    if (row % 1024 == 0) shown.at(row);
  }
  training.finish();
  evaluation.finish();
  write_truth(folder.path() + "/truth.safetensors", source);
  folder.commit();
  return {training.rows(), evaluation.rows()};
}

}  // namespace megadict
