#include "base/log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace megadict {

namespace {

struct Identity {
  int rank = 0;
  int ranks = 1;
  std::string host;
  bool progress_shown = false;
};

Identity& identity() {
  static Identity me;
  return me;
}

// One write per line, so that lines of several ranks do not interleave.
void emit(FILE* stream, std::string text) {
  Identity& me = identity();
  if (me.progress_shown) {
    std::fputs("\r\033[K", stderr);
    me.progress_shown = false;
  }
  text += '\n';
  std::fwrite(text.data(), 1, text.size(), stream);
  std::fflush(stream);
}

}  // namespace

void log_identity(int rank, int ranks, const std::string& host) {
  identity() = {rank, ranks, host, false};
}

void say(const std::string& line) {
  if (identity().rank == 0) emit(stdout, line);
}

void progress(const std::string& line) {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  if (identity().rank != 0 || !terminal) return;
  const std::string text = "\r\033[K" + line;
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
  identity().progress_shown = true;
}

void note(const std::string& line) {
  if (identity().rank == 0) emit(stderr, line);
}

void warn(const std::string& line) {
  const Identity& me = identity();
  const std::string who = me.ranks > 1 ? fmt::format("[r{} {}] ", me.rank, me.host) : "";
  emit(stderr, who + "warning: " + line);
}

void print_error(const std::string& line, bool with_rank) {
  const Identity& me = identity();
  const std::string who =
      with_rank && me.ranks > 1 ? fmt::format("rank {} ({}): ", me.rank, me.host) : "";
  emit(stderr, "megadict: " + who + line);
}

}  // namespace megadict
