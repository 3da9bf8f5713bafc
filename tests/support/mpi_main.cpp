#include "support/mpi_main.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "comm/watchdog.h"

namespace megadict {

namespace {

Launch* launch = nullptr;

// The texts of all ranks, in rank order.
std::vector<std::string> gather(const std::string& mine) {
  Communicator& world = launch->world();
  const auto ranks = static_cast<size_t>(world.size());
  std::vector<int64_t> sizes(ranks);
  const auto length = static_cast<int64_t>(mine.size());
  world.all_gather(view_of(&length, 1), view_of(sizes.data(), world.size()), "test: sizes");
  std::vector<std::string> texts(ranks);
  for (size_t r = 0; r < ranks; ++r) {
    texts[r] = mine;
    texts[r].resize(static_cast<size_t>(sizes[r]));
    const BufferView text{texts[r].data(), sizes[r], DType::u8, Device::cpu};
    world.broadcast(text, static_cast<int>(r), "test: failures");
  }
  return texts;
}

// Collects what failed in the running test.
class Collector : public ::testing::EmptyTestEventListener {
 public:
  std::string text;

 private:
  void OnTestStart(const ::testing::TestInfo&) override { text.clear(); }
  void OnTestPartResult(const ::testing::TestPartResult& part) override {
    if (!part.failed()) return;
    const char* file = part.file_name() == nullptr ? "?" : part.file_name();
    text += fmt::format("{}:{}: {}\n", file, part.line_number(), part.message());
  }
};

// After each test: fails it everywhere if it failed anywhere. Collective.
class Agreement : public ::testing::EmptyTestEventListener {
 public:
  explicit Agreement(const Collector& collector) : collector_(collector) {}

 private:
  void OnTestEnd(const ::testing::TestInfo&) override {
    const std::vector<std::string> texts = gather(collector_.text);
    const auto me = static_cast<size_t>(launch->facts().rank);
    for (size_t r = 0; r < texts.size(); ++r)
      if (r != me && !texts[r].empty()) ADD_FAILURE() << "[rank " << r << "]\n" << texts[r];
  }

  const Collector& collector_;
};

int run_tests(Launch& started) {
  launch = &started;
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  if (started.facts().rank != 0) delete listeners.Release(listeners.default_result_printer());
  // GoogleTest owns both. Ends are told in reverse order, so the agreement precedes the printer.
  auto* collector = new Collector;
  listeners.Append(collector);
  listeners.Append(new Agreement(*collector));
  return RUN_ALL_TESTS();
}

}  // namespace

Launch& test_launch() {
  return *launch;
}

Communicator& test_world() {
  return launch->world_for(test_device());
}

}  // namespace megadict

int main(int argc, char** argv) {
  try {
    megadict::Launch launch(&argc, &argv);
    ::testing::InitGoogleTest(&argc, argv);
    // Below the time-out of the tests: a rank that fell behind is named.
    megadict::DebugConfig debug;
    debug.watchdog_s = 100;
    megadict::start_watchdog(debug);
    return megadict::run_tests(launch);
  } catch (const megadict::Error& error) {
    megadict::abort_with(error);
  }
}
