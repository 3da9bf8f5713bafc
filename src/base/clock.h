// Wall-clock seconds for logs, limits and benchmarks.
#pragma once

#include <chrono>
#include <ctime>

namespace megadict {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds that all threads of this process have computed.
inline double processor_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

// Adds the time between its construction and destruction to `total`.
class Timer {
 public:
  explicit Timer(double& total) : total_(total), start_(seconds_now()) {}
  ~Timer() { total_ += seconds_now() - start_; }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  double& total_;
  double start_;
};

}  // namespace megadict
