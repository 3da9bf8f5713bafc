// An experiment of the seeds: cells that know nothing of each other, and a table that sets what
// they give beside what was reported.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace megadict {

// What a user asks of an experiment. 0 = what the experiment is defined with.
struct LabScale {
  bool quick = false;  // fewer cells and steps: minutes
  bool full =
      false;  // every cell, seed and step of the definition, also where that takes many hours
  int64_t seeds = 0;  // data seeds
  int64_t latents = 0, width = 0, k = 0, samples = 0, steps = 0;
  double rate = 0, lambda = 0;
  double zipf = 0;             // A3
  std::string data_path = {};  // shards of activations to train on
  std::string mnist = {};      // folder of MNIST; "" = where find_mnist() looks (lab/mnist.h)

  // Another problem or other training than the seeds': nothing reported is comparable.
  bool is_own() const {
    return latents + width + k + samples + steps > 0 || rate > 0 || lambda > 0 || zipf > 0;
  }
};

// One point of the grid under one data seed.
struct LabCell {
  std::string group;                // of the cells that differ in the data seed alone: "sae"
  int64_t seed = 0;                 // counted from 0
  double cost_s = 1;                // about, on one core: the order of work, and what is announced
  nlohmann::ordered_json settings;  // all that its numbers follow from
  std::function<nlohmann::ordered_json()> run = {};
  // In place of run, where a cell leaves more than numbers: into OUT/NAME/files/CELL, a folder that
  // is there.
  std::function<nlohmann::ordered_json(const std::string& folder)> run_into = {};

  std::string name() const;  // "sae_seed0"
};

struct LabResult {
  std::string group;
  int64_t seed = 0;
  double seconds = 0;
  nlohmann::ordered_json settings, numbers;
  nlohmann::ordered_json times =
      {};  // differ from run to run: keys of a cell that begin with time_
};

struct Band {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool holds(double value) const { return low <= value && value <= high; }
};

enum class Verdict { met, missed, holds, fails, no_band };

// One line of the table.
struct LabRow {
  std::string what, reported;  // reported: as it is to be printed, "" = nothing
  std::optional<double> ours;
  double spread = 0;  // population standard deviation over seeds
  int64_t runs = 0;
  std::optional<Band> band;
  std::string note = "";
  bool is_time = false;  // measured: another one in every run
  bool claim = false;    // the band is what somebody asserted, not a number with room around it

  Verdict verdict() const;
};

// What the cells gave, by group.
class LabResults {
 public:
  explicit LabResults(std::vector<LabResult> all) : all_(std::move(all)) {}

  const std::vector<LabResult>& all() const { return all_; }
  // numbers[key], or times[key], of every seed of a group that has it, in the order of seeds.
  std::vector<double> values(std::string_view group, std::string_view key) const;
  bool has(std::string_view group) const;
  double mean(std::string_view group, std::string_view key) const;
  // Mean of numbers[curve][key] at `step` over the seeds that have it; nothing where none has.
  std::optional<double> at_step(std::string_view group, const std::string& curve, int64_t step,
                                const std::string& key) const;
  // The row of that mean and its spread; a group that was not run gives a row without a number.
  LabRow row(const std::string& what, std::string_view group, std::string_view key,
             const std::string& reported, std::optional<Band> band = {}) const;

 private:
  std::vector<LabResult> all_;
};

// A number that follows from others: a difference of means, a count.
LabRow derived_row(const std::string& what, std::optional<double> value,
                   const std::string& reported, std::optional<Band> band = {});
// The same for what a seed asserts: it holds where the value is in `where`, else it does not.
LabRow claim_row(const std::string& what, std::optional<double> value, const std::string& reported,
                 Band where);

// Whether an experiment trains on the user's activations (LabScale::data_path).
enum class LabRows { never, where_given, always };

struct LabExperiment {
  std::string_view name, items, summary;
  std::vector<LabCell> (*cells)(const LabScale& scale);  // exit 2 for a scale that cannot be
  std::vector<LabRow> (*table)(const LabResults& results);
  // Looks for what no cell can do without, before any runs; null = nothing. Exit 3.
  void (*check)(const LabScale& scale) = nullptr;
  LabRows rows = LabRows::never;
};

std::span<const LabExperiment> all_experiments();

// "reported | ours | band | verdict", aligned; and the same as JSON.
std::string table_text(const std::vector<LabRow>& rows);
nlohmann::ordered_json table_json(const std::vector<LabRow>& rows);
// Bands met and missed, claims that hold and fail, lines without either or without a number.
struct VerdictCount {
  int64_t met = 0, missed = 0, holds = 0, fails = 0, not_covered = 0;
  void add(const VerdictCount& other);
  // "3 of 4 bands met, 1 missed; 1 of 2 claims hold; 5 lines without a band or a number"
  std::string text() const;
};
VerdictCount count_verdicts(const std::vector<LabRow>& rows);

}  // namespace megadict
