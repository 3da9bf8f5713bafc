#include "lab/experiment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lab/experiments.h"

namespace megadict {

namespace {

constexpr std::string_view kVerdicts[] = {"met", "MISSED", "holds", "DOES NOT HOLD", "-"};

std::string band_text(const std::optional<Band>& band) {
  if (!band) return "";
  const bool has_low = std::isfinite(band->low), has_high = std::isfinite(band->high);
  if (has_low && has_high) return fmt::format("{:.4g} to {:.4g}", band->low, band->high);
  return has_low ? fmt::format(">= {:.4g}", band->low) : fmt::format("<= {:.4g}", band->high);
}

std::string ours_text(const LabRow& row) {
  if (!row.ours) return "not run";
  return row.runs > 1 ? fmt::format("{:.4g} +- {:.2g}", *row.ours, row.spread)
                      : fmt::format("{:.4g}", *row.ours);
}

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace

std::string LabCell::name() const {
  return fmt::format("{}_seed{}", group, seed);
}

Verdict LabRow::verdict() const {
  if (!ours || !band) return Verdict::no_band;
  const bool inside = band->holds(*ours);
  if (claim) return inside ? Verdict::holds : Verdict::fails;
  return inside ? Verdict::met : Verdict::missed;
}

std::vector<double> LabResults::values(std::string_view group, std::string_view key) const {
  std::vector<double> out;
  for (const LabResult& result : all_) {
    if (result.group != group) continue;
    for (const nlohmann::ordered_json* json : {&result.numbers, &result.times})
      if (json->contains(key)) out.push_back((*json)[std::string(key)].get<double>());
  }
  return out;
}

bool LabResults::has(std::string_view group) const {
  return std::any_of(all_.begin(), all_.end(),
                     [&](const LabResult& result) { return result.group == group; });
}

double LabResults::mean(std::string_view group, std::string_view key) const {
  return mean_of(values(group, key));
}

std::optional<double> LabResults::at_step(std::string_view group, const std::string& curve,
                                          int64_t step, const std::string& key) const {
  std::vector<double> found;
  for (const LabResult& result : all_) {
    if (result.group != group || !result.numbers.contains(curve)) continue;
    const auto& points = result.numbers[curve];
    for (size_t i = 0; i < points["step"].size(); ++i)
      if (points["step"][i].get<double>() == static_cast<double>(step))
        found.push_back(points[key][i].get<double>());
  }
  return found.empty() ? std::nullopt : std::optional(mean_of(found));
}

LabRow LabResults::row(const std::string& what, std::string_view group, std::string_view key,
                       const std::string& reported, std::optional<Band> band) const {
  LabRow row{what, reported, {}, 0, 0, band};
  const std::vector<double> found = values(group, key);
  if (found.empty()) return row;
  const double mean = mean_of(found);
  double squares = 0;
  for (const double value : found) squares += (value - mean) * (value - mean);
  row.ours = mean;
  row.spread = std::sqrt(squares / static_cast<double>(found.size()));
  row.runs = static_cast<int64_t>(found.size());
  row.is_time = key.starts_with("time_");
  return row;
}

LabRow derived_row(const std::string& what, std::optional<double> value,
                   const std::string& reported, std::optional<Band> band) {
  const bool known = value && std::isfinite(*value);
  return {what, reported, known ? value : std::nullopt, 0, 0, band};
}

LabRow claim_row(const std::string& what, std::optional<double> value, const std::string& reported,
                 Band where) {
  LabRow row = derived_row(what, value, reported, where);
  row.claim = true;
  return row;
}

std::string table_text(const std::vector<LabRow>& rows) {
  size_t what = 4, reported = 8, ours = 4, band = 4;
  for (const LabRow& row : rows) {
    what = std::max(what, row.what.size());
    reported = std::max(reported, row.reported.size());
    ours = std::max(ours, ours_text(row).size());
    band = std::max(band, band_text(row.band).size());
  }
  const auto line = [&](const std::string& a, const std::string& b, const std::string& c,
                        const std::string& d, std::string_view e) {
    return fmt::format("{:<{}}  {:>{}}  {:>{}}  {:>{}}  {}\n", a, what, b, reported, c, ours, d,
                       band, e);
  };
  std::string text = line("what", "reported", "ours", "band", "verdict");
  for (const LabRow& row : rows) {
    const std::string verdict(kVerdicts[static_cast<size_t>(row.verdict())]);
    text += line(row.what, row.reported, ours_text(row), band_text(row.band),
                 row.note.empty() ? verdict : verdict + "  " + row.note);
  }
  text.pop_back();
  return text;
}

nlohmann::ordered_json table_json(const std::vector<LabRow>& rows) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const LabRow& row : rows) {
    nlohmann::ordered_json one = {{"what", row.what}, {"reported", row.reported}};
    one["ours"] = row.ours ? nlohmann::ordered_json(*row.ours) : nlohmann::ordered_json();
    one["sd"] = row.spread;
    one["runs"] = row.runs;
    one["band"] = band_text(row.band);
    one["verdict"] = kVerdicts[static_cast<size_t>(row.verdict())];
    if (row.is_time) one["time"] = true;
    if (!row.note.empty()) one["note"] = row.note;
    json.push_back(one);
  }
  return json;
}

VerdictCount count_verdicts(const std::vector<LabRow>& rows) {
  VerdictCount count;
  for (const LabRow& row : rows) {
    int64_t* const of_verdict[] = {&count.met, &count.missed, &count.holds, &count.fails,
                                   &count.not_covered};
    *of_verdict[static_cast<size_t>(row.verdict())] += 1;
  }
  return count;
}

void VerdictCount::add(const VerdictCount& other) {
  met += other.met;
  missed += other.missed;
  holds += other.holds;
  fails += other.fails;
  not_covered += other.not_covered;
}

std::string VerdictCount::text() const {
  std::string text = fmt::format("{} of {} bands met, {} missed", met, met + missed, missed);
  if (holds + fails > 0) text += fmt::format("; {} of {} claims hold", holds, holds + fails);
  return text + fmt::format("; {} lines without a band or a number", not_covered);
}

std::span<const LabExperiment> all_experiments() {
  static const std::vector<LabExperiment> all = {
      known_codes_experiment(),    known_dictionary_experiment(),
      unknown_experiment(),        pursuits_experiment(),
      regimes_experiment(),        frontier_experiment(),
      gram_experiment(),           width_experiment(),
      bias_experiment(),           topk_codes_experiment(),
      resampling_experiment(),     depth_experiment(),
      connectors_experiment(),     tied_experiment(),
      sparse_weights_experiment(), traditional_experiment(),
      variants_experiment(),       architectures_experiment(),
      scaling_experiment(),        dead_experiment(),
      compositions_experiment(),   headline_experiment()};
  return all;
}

}  // namespace megadict
