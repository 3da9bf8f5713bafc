#include "base/log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace megadict {

namespace {

struct Identity {
  int rank = 0;
  int ranks = 1;
  std::string host;
  bool progress_shown = false;
  bool quiet = false;
  int output_error = 0;  // errno of the first line that stdout did not take
  bool has_log_file = false;
  FILE* log_file = nullptr;  // nullptr: what would go there is dropped
  std::string log_path;
  int log_error = 0;  // as output_error, of the log file: warned of at its end
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
  if (whole && flushed) return;
  if (stream == stdout && me.output_error == 0) me.output_error = errno;
  if (stream == me.log_file && me.log_error == 0) me.log_error = errno;
}

// Where rank 0 says something, or who has a file of its own.
void emit_own(FILE* stream, const std::string& line) {
  const Identity& me = identity();
  if (me.has_log_file) stream = me.log_file;
  if (stream != nullptr && (me.has_log_file || me.rank == 0)) emit(stream, line);
}

}  // namespace

void log_identity(int rank, int ranks, const std::string& host) {
  Identity& me = identity();
  me.rank = rank;
  me.ranks = ranks;
  me.host = host;
}

void say(const std::string& line) {
  emit_own(stdout, line);
}

void tell(const std::string& line) {
  emit(stdout, line);
}

std::string lost_output() {
  return identity().output_error == 0 ? "" : std::strerror(identity().output_error);
}

void progress(const std::string& line) {
  if (identity().rank != 0 || identity().has_log_file || !on_terminal() || is_quiet()) return;
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
  emit_own(stderr, line);
}

void warn(const std::string& line) {
  const Identity& me = identity();
  const std::string who = me.ranks > 1 ? fmt::format("[r{} {}] ", me.rank, me.host) : "";
  emit(stderr, who + "warning: " + line);
}

std::string this_rank() {
  const Identity& me = identity();
  return me.ranks > 1 ? fmt::format("rank {} ({}): ", me.rank, me.host) : "";
}

void print_error(const std::string& line, bool with_rank) {
  emit(stderr, "megadict: " + (with_rank ? this_rank() : "") + line);
}

LogFile::LogFile(const std::string& path) {
  Identity& me = identity();
  if (!path.empty()) {
    me.log_file = std::fopen(path.c_str(), "a");
    if (me.log_file == nullptr)
      fail(ExitCode::error, fmt::format("cannot write '{}': {}", path, std::strerror(errno)));
  }
  me.has_log_file = true;
  me.log_path = path;
}

LogFile::~LogFile() {
  Identity& me = identity();
  if (me.log_file != nullptr && std::fclose(me.log_file) != 0 && me.log_error == 0)
    me.log_error = errno;
  if (me.log_error != 0)
    warn(fmt::format("'{}' lacks lines: {}", me.log_path, std::strerror(me.log_error)));
  me.log_error = 0;
  me.log_file = nullptr;
  me.has_log_file = false;
}

}  // namespace megadict
