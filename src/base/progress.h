// How far a long command is, on stderr of rank 0: its share, its rate, the time left. On a terminal
// one line that renews itself, elsewhere a plain line every half minute, with --quiet nothing.
#pragma once

#include <cstdint>
#include <string>

namespace megadict {

class Progress {
 public:
  // `done` of an earlier run do not count in the rate.
  Progress(std::string what, int64_t total, std::string unit, int64_t done = 0);
  void at(int64_t done);

 private:
  std::string what_, unit_;
  int64_t total_, begun_at_;
  double begin_s_, shown_s_;
};

// "import:  45 %, 1,200 of 2,600 rows, 812 rows/s, 0:02 left"; `rate` a second, 0 = not known.
std::string progress_text(const std::string& what, int64_t done, int64_t total,
                          const std::string& unit, double rate);

}  // namespace megadict
