// Errors and exit codes. Every failure of the program is an Error: one line that says what, where
// and what is allowed, a hint, and the exit code. main() prints it once.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace megadict {

enum class ExitCode : int {
  done = 0,
  error = 1,         // anything not listed below, disk full included
  usage = 2,         // bad flag, config or combination
  bad_data = 3,      // a shard, checkpoint or foreign file that cannot be used
  diverged = 4,      // non-finite values; agreed by all ranks, no checkpoint written
  comm = 5,          // communication failure or time-out
  requeue = 75,      // saved, wants to be started again (USR1)
  terminated = 143,  // saved after TERM
};

// `agreed`: every rank throws the same error at the same point, so that one line is enough
// (rank 0 prints it). Otherwise the failing rank prints it, prefixed by its rank.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& what, std::string hint = "", bool agreed = false);
  ExitCode code() const { return code_; }
  const std::string& hint() const { return hint_; }
  bool agreed() const { return agreed_; }
  // "cannot read 'x'. hint: megadict data info x"
  std::string line() const;

 private:
  ExitCode code_;
  std::string hint_;
  bool agreed_;
};

[[noreturn]] void fail(ExitCode code, const std::string& what, const std::string& hint = "");
// For errors that every rank meets alike (same flags, same small files).
[[noreturn]] void fail_agreed(ExitCode code, const std::string& what, const std::string& hint = "");

// Any other exception as one of these, with exit 1; an Error stays as it is.
Error error_of(const std::exception& thrown);

// The candidate with the smallest edit distance to `name`, or "" when none is near (distance
// above a third of the length of `name`, at least 2).
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace megadict
