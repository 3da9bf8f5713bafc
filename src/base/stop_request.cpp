#include "base/stop_request.h"

#include <csignal>
#include <initializer_list>

namespace megadict {

namespace {

volatile std::sig_atomic_t requested = 0;

void on_signal(int signal) {
  const int wanted =
      static_cast<int>(signal == SIGUSR1 ? StopRequest::requeue : StopRequest::terminate);
  if (wanted > requested) requested = wanted;
}

void set_handler(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
}

}  // namespace

void install_stop_handlers() {
  set_handler(on_signal);
}

StopRequest stop_requested() {
  return static_cast<StopRequest>(requested);
}

ExitCode code_of(StopRequest request) {
  switch (request) {
    case StopRequest::none:
      return ExitCode::done;
    case StopRequest::requeue:
      return ExitCode::requeue;
    case StopRequest::terminate:
      return ExitCode::terminated;
  }
  return ExitCode::error;
}

void ignore_stop_signals() {
  set_handler(SIG_IGN);
}

}  // namespace megadict
