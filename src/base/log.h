// The only place that writes to the terminal. stdout: rank 0, results and one line per interval.
// stderr: any rank, prefixed "[r12 n3]" when there is more than one rank.
#pragma once

#include <string>

namespace megadict {

// Who speaks: set once after launch. `node` is the host's index, "" host name prints none.
void log_identity(int rank, int ranks, const std::string& host);

void say(const std::string& line);   // rank 0, stdout, flushed
void tell(const std::string& line);  // any rank, stdout, flushed
// Why a line of say() was lost ("No space left on device"), "" while none was.
std::string lost_output();
// rank 0, stderr, overwrites itself; only on a terminal, and not after set_quiet(). Where there is
// a count, Progress (base/progress.h) says the same with rate and time left.
void progress(const std::string& line);
bool on_terminal();  // whether stderr is one
void set_quiet();    // no progress from here on
bool is_quiet();
void note(const std::string& line);  // rank 0, stderr
void warn(const std::string& line);  // any rank, stderr, "warning: ..."
// "rank 3 (n2): ", "" where there is one rank.
std::string this_rank();
// "megadict: rank 3 (n2): LINE" (the rank only when there are several), stderr, one write call.
void print_error(const std::string& line, bool with_rank);

// While one lives, what say() and note() of this process have to say is appended to a file, or with
// an empty path to none: runs beside each other each have their own. One at a time.
class LogFile {
 public:
  explicit LogFile(const std::string& path);
  ~LogFile();
  LogFile(const LogFile&) = delete;
  LogFile& operator=(const LogFile&) = delete;
};

}  // namespace megadict
