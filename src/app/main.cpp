// megadict COMMAND: start MPI, look the command up, turn every failure into one line and an exit
// code that all ranks share.
#include <fmt/format.h>

#include <csignal>
#include <exception>
#include <filesystem>
#include <new>
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

Error out_of_memory() {
  return Error(ExitCode::error, "out of memory", "megadict plan shows what a run needs");
}

// Library messages may run over many lines (LibTorch appends a backtrace); the first one says it.
std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

// LibTorch's allocator has an exception of its own.
Error unexpected(const std::string& what) {
  if (what.find("DefaultCPUAllocator") == std::string::npos &&
      what.find("CUDA out of memory") == std::string::npos)
    return Error(ExitCode::error, "unexpected: " + what);
  return out_of_memory();
}

}  // namespace

}  // namespace megadict

int main(int argc, char** argv) {
  using namespace megadict;
  keep_tensor_memory();
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond `ulimit -f` fails instead, and gets its line
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    abort_with(error);
  } catch (const std::bad_alloc&) {
    abort_with(out_of_memory());
  } catch (const std::filesystem::filesystem_error& error) {
    abort_with(Error(ExitCode::error, fmt::format("cannot use '{}': {}", error.path1().string(),
                                                  error.code().message())));
  } catch (const std::exception& error) {
    abort_with(unexpected(first_line(error.what())));
  }
}
