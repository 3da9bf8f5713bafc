// The comparison of encoder and pursuits as text and as JSON.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "eval/inference.h"

namespace megadict {

std::string inference_text(const InferenceReport& report) {
  std::string text = fmt::format(
      "codes of the first {} rows, by the encoder and by optimisation for the same decoder\n"
      "{:<10} {:<17} {:>9} {:>10} {:>16} {:>14}\n",
      report.rows, "method", "k or lambda", "L0", "FVU", "of the encoder's", "s / 1,000 rows");
  for (const InferenceResult& r : report.results) {
    const std::string with = r.k > 0        ? fmt::format("k {}", r.k)
                             : r.lambda > 0 ? fmt::format("lambda {:.4g}", r.lambda)
                                            : "-";
    text += fmt::format("{:<10} {:<17} {:>9.2f} {:>10.5f} {:>14.1f} % {:>14.3f}\n", r.method, with,
                        r.l0, r.fvu, 100 * r.of_encoder, r.seconds);
  }
  return text;
}

nlohmann::ordered_json inference_json(const InferenceReport& report) {
  using Json = nlohmann::ordered_json;
  const auto known = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  Json methods = Json::array();
  for (const InferenceResult& r : report.results)
    methods.push_back({{"method", r.method},
                       {"k", r.k > 0 ? Json(r.k) : Json()},
                       {"lambda", r.lambda > 0 ? Json(r.lambda) : Json()},
                       {"l0", r.l0},
                       {"fvu", known(r.fvu)},
                       {"share_of_encoder_fvu", known(r.of_encoder)},
                       {"seconds_per_1000_rows", r.seconds},
                       {"search_seconds", r.search_seconds}});
  return {{"rows", report.rows}, {"methods", methods}};
}

}  // namespace megadict
