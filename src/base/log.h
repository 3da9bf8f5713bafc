// The only place that writes to the terminal. stdout: rank 0, results and one line per interval.
// stderr: any rank, prefixed "[r12 n3]" when there is more than one rank.
#pragma once

#include <string>

namespace megadict {

// Who speaks: set once after launch. `node` is the host's index, "" host name prints none.
void log_identity(int rank, int ranks, const std::string& host);

void say(const std::string& line);  // rank 0, stdout, flushed
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
// "megadict: rank 3 (n2): LINE" (the rank only when there are several), stderr, one write call.
void print_error(const std::string& line, bool with_rank);

}  // namespace megadict
