#include "base/log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace megadict {

namespace {

struct Identity {
  int rank = 0;
  int ranks = 1;
  std::string host;
  bool progress_shown = false;
  bool quiet = false;
  int output_error = 0;  // errno of the first line that stdout did not take
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
  const bool whole = std::fwrite(text.data(), 1, text.size(), stream) == text.size();
  const bool flushed = std::fflush(stream) == 0;
  if (stream == stdout && !(whole && flushed) && me.output_error == 0) me.output_error = errno;
}

}  // namespace

void log_identity(int rank, int ranks, const std::string& host) {
  Identity& me = identity();
  me.rank = rank;
  me.ranks = ranks;
  me.host = host;
}

void say(const std::string& line) {
  if (identity().rank == 0) emit(stdout, line);
}

std::string lost_output() {
  return identity().output_error == 0 ? "" : std::strerror(identity().output_error);
}

void progress(const std::string& line) {
  if (identity().rank != 0 || !on_terminal() || is_quiet()) return;
  const std::string text = "\r\033[K" + line;
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
  identity().progress_shown = true;
}

bool on_terminal() {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  return terminal;
}

void set_quiet() {
  identity().quiet = true;
}

bool is_quiet() {
  return identity().quiet;
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
