// Starts whole jobs, for tests of how they end. MEGADICT_TEST_MPIEXEC comes from CMake.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <sstream>
#include <string>

#include "base/clock.h"

namespace megadict {

struct Outcome {
  int code = -1;
  double seconds = 0;
  std::string text;  // stdout and stderr
};

inline Outcome shell(const std::string& command) {
  Outcome outcome;
  const double start = seconds_now();
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer;
  while (const size_t read = std::fread(buffer.data(), 1, buffer.size(), pipe))
    outcome.text.append(buffer.data(), read);
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 256;
  outcome.seconds = seconds_now() - start;
  return outcome;
}

// The job under mpirun; whatever its end, none of its processes may outlive it.
inline Outcome job(int ranks, const std::string& program, const std::string& arguments) {
  const Outcome outcome = shell(fmt::format("timeout -k 5 60 {} -n {} {} {}", MEGADICT_TEST_MPIEXEC,
                                            ranks, program, arguments));
  std::istringstream lines(outcome.text);
  int pids = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("pid ", 0) != 0) continue;
    ++pids;
    const pid_t pid = std::stoi(line.substr(4));
    for (int wait = 0; wait < 300 && kill(pid, 0) == 0; ++wait) usleep(100'000);
    EXPECT_NE(kill(pid, 0), 0) << "process " << pid << " is still there\n" << outcome.text;
  }
  EXPECT_EQ(pids, ranks) << outcome.text;
  EXPECT_LT(outcome.seconds, 40) << outcome.text;
  return outcome;
}

inline int occurrences(const std::string& text, const std::string& what) {
  int count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

}  // namespace megadict
