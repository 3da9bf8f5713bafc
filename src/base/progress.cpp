#include "base/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "base/log.h"

namespace megadict {

namespace {

constexpr double kTerminalEvery_s = 0.5, kLineEvery_s = 30;

std::string with_commas(int64_t count) {
  std::string text = std::to_string(count);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), ",");
  return text;
}

std::string rate_text(double rate) {
  return rate >= 100 ? with_commas(std::llround(rate)) : fmt::format("{:.3g}", rate);
}

std::string clock_text(double seconds) {
  const int64_t s = std::llround(seconds);
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{}:{:02}", s / 60, s % 60);
}

}  // namespace

std::string progress_text(const std::string& what, int64_t done, int64_t total,
                          const std::string& unit, double rate) {
  total = std::max(total, done);
  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  std::string text = fmt::format("{}: {:3.0f} %, {} of {} {}", what, 100 * share, with_commas(done),
                                 with_commas(total), unit);
  if (rate > 0)
    text += fmt::format(", {} {}/s, {} left", rate_text(rate), unit,
                        clock_text(static_cast<double>(total - done) / rate));
  return text;
}

Progress::Progress(std::string what, int64_t total, std::string unit, int64_t done)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      begun_at_(done),
      begin_s_(seconds_now()),
      shown_s_(begin_s_) {}

void Progress::at(int64_t done) {
  const bool terminal = on_terminal();
  const double now = seconds_now();
  if (now - shown_s_ < (terminal ? kTerminalEvery_s : kLineEvery_s) || is_quiet()) return;
  shown_s_ = now;
  const std::string text = progress_text(what_, done, total_, unit_,
                                         static_cast<double>(done - begun_at_) / (now - begin_s_));
  if (terminal)
    progress(text);
  else
    note(text);
}

}  // namespace megadict
