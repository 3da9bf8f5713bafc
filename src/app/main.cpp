// megadict COMMAND: start MPI, look the command up, turn every failure into one line and an exit
// code that all ranks share.
#include <fmt/format.h>

#include <exception>
#include <new>
#include <string_view>

#include "app/build_facts.h"
#include "app/commands.h"
#include "base/error.h"
#include "base/log.h"
#include "base/stop_request.h"
#include "base/version.h"

namespace megadict {

namespace {

int run(int argc, char** argv) {
  // Before MPI starts, which may take long: the first step sees what came until then.
  if (argc > 1 && std::string_view(argv[1]) == "train") install_stop_handlers();
  Launch launch(&argc, &argv);
  const Args args(argv + 1, argv + argc);
  if (!args.empty() && args.front() == "--version") {
    say(fmt::format("megadict {}", version()));
    return 0;
  }
  return dispatch(all_commands(), "megadict", launch, args);
}

// Library messages may run over many lines (LibTorch appends a backtrace); the first one says it.
std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

}  // namespace

}  // namespace megadict

int main(int argc, char** argv) {
  using namespace megadict;
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    abort_with(error);
  } catch (const std::bad_alloc&) {
    abort_with(Error(ExitCode::error, "out of memory", "megadict plan shows what a run needs"));
  } catch (const std::exception& error) {
    abort_with(Error(ExitCode::error, "unexpected: " + first_line(error.what())));
  }
}
