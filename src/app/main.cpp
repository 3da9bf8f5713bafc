// megadict COMMAND: start MPI, look the command up, turn every failure into one line and an exit
// code that all ranks share.
#include <fmt/format.h>

#include <csignal>
#include <exception>
#include <string_view>

#include "app/build_facts.h"
#include "app/commands.h"
#include "base/error.h"
#include "base/log.h"
#include "base/stop_request.h"
#include "base/version.h"
#include "kernels/memory.h"

namespace megadict {

namespace {

int run(int argc, char** argv) {
  // Before MPI starts, which may take long: the first step sees what came until then.
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "train" || command == "sweep") install_stop_handlers();
  Launch launch(&argc, &argv);
  Args args(argv + 1, argv + argc);
  if (std::erase(args, "--quiet") > 0) set_quiet();
  int code = 0;
  if (!args.empty() && args.front() == "--version")
    say(fmt::format("megadict {}", version()));
  else
    code = dispatch(all_commands(), "megadict", launch, args);
  if (code == 0 && !lost_output().empty())
    fail(ExitCode::error, "cannot write to standard output: " + lost_output());
  return code;
}

}  // namespace

}  // namespace megadict

int main(int argc, char** argv) {
  using namespace megadict;
  keep_tensor_memory();
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond `ulimit -f` fails instead, and gets its line
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    abort_with(error_of(error));
  }
}
