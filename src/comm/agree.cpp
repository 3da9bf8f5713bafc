#include "comm/agree.h"

#include <fmt/format.h>

#include <exception>
#include <optional>

#include "base/error.h"
#include "base/log.h"

namespace megadict {

namespace {

std::string from_rank(Communicator& world, int root, const std::string& text) {
  auto size = static_cast<int64_t>(text.size());
  world.broadcast(view_of(&size, 1), root, "error");
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  if (world.rank() == root) std::copy(text.begin(), text.end(), bytes.begin());
  world.broadcast(view_of(bytes.data(), size), root, "error");
  return {bytes.begin(), bytes.end()};
}

}  // namespace

void agree(Communicator& world, const std::function<void()>& work) {
  if (world.size() == 1) return work();
  std::optional<Error> mine;
  try {
    work();
  } catch (const std::exception& error) {
    mine = error_of(error);
  }
  int32_t first = mine ? world.rank() : world.size();
  world.all_reduce(view_of(&first, 1), ReduceOp::min, "errors");
  if (first == world.size()) return;
  auto code = static_cast<int32_t>(mine ? mine->code() : ExitCode::done);
  world.broadcast(view_of(&code, 1), first, "error");
  std::string what, hint;
  if (mine) {
    what = (mine->agreed() ? "" : this_rank()) + mine->what();
    hint = mine->hint();
  }
  what = from_rank(world, first, what);
  hint = from_rank(world, first, hint);
  fail_agreed(static_cast<ExitCode>(code), what, hint);
}

StopRequest agreed_stop(Communicator& world) {
  auto request = static_cast<int32_t>(stop_requested());
  world.all_reduce(view_of(&request, 1), ReduceOp::max, "stop request");
  return static_cast<StopRequest>(request);
}

}  // namespace megadict
