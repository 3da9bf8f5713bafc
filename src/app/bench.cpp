#include "app/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/clock.h"

namespace megadict {

std::vector<double> times_of(int repeats, const std::function<void()>& work) {
  work();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double start = seconds_now();
    work();
    seconds.push_back(seconds_now() - start);
  }
  return seconds;
}

BenchLine line_of(std::string name, std::vector<double> seconds, double work, std::string unit) {
  std::sort(seconds.begin(), seconds.end());
  BenchLine line;
  line.name = std::move(name);
  line.median_s = seconds[seconds.size() / 2];
  line.least_s = seconds.front();
  line.most_s = seconds.back();
  line.work = work;
  line.unit = std::move(unit);
  return line;
}

std::vector<std::string> table_of(const BenchReport& report) {
  std::vector<std::string> out = {report.title};
  out.push_back(fmt::format("{:<26} {:>10} {:>21} {:>9} {:<8} {:>7} {:<12} {:>7} {:>9}", "", "ms",
                            "least..most", "rate", "", "of", "bound", "#wrong", "compared"));
  for (const BenchLine& line : report.lines) {
    const double rate = line.median_s > 0 ? line.work / line.median_s : 0;
    const double shown = line.unit.starts_with('G') ? rate / 1e9 : rate;
    out.push_back(fmt::format(
        "{:<26} {:>10.2f} {:>21} {:>9.1f} {:<8} {:>7} {:<12} {:>7} {:>9}", line.name,
        line.median_s * 1e3, fmt::format("{:.2f}..{:.2f}", line.least_s * 1e3, line.most_s * 1e3),
        shown, line.unit, line.bound > 0 ? fmt::format("{:.0f} %", 100 * rate / line.bound) : "",
        line.bound_name, line.compared > 0 ? std::to_string(line.wrong) : "",
        line.compared > 0 ? std::to_string(line.compared) : ""));
  }
  return out;
}

nlohmann::ordered_json json_of(const BenchReport& report) {
  nlohmann::ordered_json lines = nlohmann::ordered_json::array();
  for (const BenchLine& line : report.lines) {
    nlohmann::ordered_json one = {{"name", line.name},
                                  {"median_s", line.median_s},
                                  {"least_s", line.least_s},
                                  {"most_s", line.most_s},
                                  {"work", line.work},
                                  {"unit", line.unit},
                                  {"rate", line.median_s > 0 ? line.work / line.median_s : 0.0}};
    if (line.bound > 0) one.update({{"bound", line.bound}, {"bound_name", line.bound_name}});
    if (line.processor_s > 0) one["processor_s"] = line.processor_s;
    if (line.compared > 0) one.update({{"compared", line.compared}, {"wrong", line.wrong}});
    lines.push_back(one);
  }
  return {{"title", report.title}, {"lines", lines}};
}

}  // namespace megadict
