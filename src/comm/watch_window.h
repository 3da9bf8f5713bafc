// What the ranks of one node tell each other about their collectives: a slot per rank in memory
// that all of them map. Written by its owner, read by any watchdog thread, never through an MPI
// call; the texts may tear, they are for a message only.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace megadict {

// A text that can be read while it is written; the first 55 bytes are kept.
class SharedText {
 public:
  void set(const char* text);
  std::string get() const;

 private:
  std::array<std::atomic<uint64_t>, 7> words_{};
};

struct RankSlot {  // MPI aligns its windows to 8 bytes, no more
  struct Arrivals {
    std::atomic<uint64_t> communicator{0};  // 0 = never used
    std::atomic<bool> over{false};          // may be overwritten; until then others can compare
    std::atomic<int64_t> count{0};
  };
  std::atomic<int> world_rank{-1};
  std::atomic<int> pid{0};
  std::atomic<int64_t> pulse_ns{0};  // the watchdog thread's last sign of life
  std::atomic<int64_t> since_ns{0};  // when the call below was entered or left
  std::atomic<int64_t> step{-1};
  std::atomic<uint64_t> current{0};  // communicator of the call below
  std::atomic<int64_t> calls{0};     // so far, on all communicators
  std::atomic<bool> inside{false};
  std::atomic<bool> ended{false};       // it stopped its watchdog in good order
  std::atomic<bool> spoken_for{false};  // slot 0: somebody says why the job ends
  SharedText kind, name, axis;
  std::array<Arrivals, 32> arrivals;

  // -1 where this rank has never used that communicator.
  int64_t arrivals_at(uint64_t communicator) const;
  void arrive(uint64_t communicator, int64_t count);
  void forget(uint64_t communicator);
};

class WatchWindow {
 public:
  WatchWindow();  // collective over MPI's world where MPI runs
  ~WatchWindow();
  WatchWindow(const WatchWindow&) = delete;
  WatchWindow& operator=(const WatchWindow&) = delete;

  void meet();  // all ranks of the world

  RankSlot& mine() { return *slots_[mine_]; }
  const std::vector<RankSlot*>& node() const { return slots_; }
  int ranks() const { return ranks_; }  // of the world

 private:
  struct Shared;  // the MPI side
  std::unique_ptr<Shared> shared_;
  std::unique_ptr<RankSlot> alone_;  // in a world of one, without MPI
  std::vector<RankSlot*> slots_;
  size_t mine_ = 0;
  int ranks_ = 1;
};

}  // namespace megadict
