// Communicator: the one virtual interface of the project. It is chosen at run time (self, MPI,
// NCCL), called some ten times a step, and tests replace it by doubles.
//
// Public calls are not virtual: each checks its buffers, tells the watchdog its name, counts the
// bytes this rank RECEIVES FROM OTHERS, then forwards to do_*(). With M the bytes of the full
// vector and p ranks: all-gather and reduce-scatter M(p-1)/p, all-reduce 2M(p-1)/p rounded down
// (bit_or, an all-gather with a local OR: M(p-1)), all-to-all the sum of foreign blocks, broadcast
// M on all but the root.
//
// All calls are collective over the communicator; but for start_*() they block: on return the
// output may be read (on a CUDA device: by work queued on any stream; the input must have been
// produced on the default stream or be complete). A buffer of 0 elements is fine and moves nothing.
// Communicators of host memory refuse GPU memory. One of GPU memory (NCCL) takes host memory too
// and sends it through the MPI communicator that it was built from: meant for a few scalars. On it,
// bit_or of GPU memory is staged through host memory, since NCCL has no such operation.
//
// Misuse (sizes, types, ranges that overlap) is an Error of code 1 on the rank that calls; a
// failing transport is an Error of code 5 that names collective, axis and rank. Neither can be
// recovered from: the other ranks wait, so the catcher calls abort_with() of comm/launch.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer_view.h"

namespace megadict {

enum class ReduceOp { sum, max, min, bit_or };

struct CollectiveCount {
  const char* kind = "";  // "all_gather"
  int64_t calls = 0;
  int64_t bytes = 0;
};

class Communicator;

// What a backend left under way; only comm includes more than this line of it.
class Underway;

// A collective that was started. Its buffers belong to it until wait() returns, which is
// collective like the start; the watchdog watches the wait. Whoever drops it unwaited waits then,
// unless an error unwinds: such a job ends.
class Pending {
 public:
  Pending() noexcept;  // nothing to wait for
  Pending(Pending&& other) noexcept;
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();
  void wait();

 private:
  friend class Communicator;
  Pending(Communicator& owner, const char* kind, const char* name,
          std::unique_ptr<Underway> underway);

  Communicator* owner_ = nullptr;
  const char *kind_ = "", *name_ = "";
  std::unique_ptr<Underway> underway_;
};

class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& axis() const { return axis_; }  // "world", "feature", "data", ...

  // `name` says what the call is for, e.g. "topk candidates"; it must be a string literal.
  // bf16 and f16 sums of host memory are accumulated in fp32, in rank order, and rounded once (NCCL
  // rounds once a hop). bit_or takes unsigned integers only. max and min of a NaN are unspecified.
  void all_reduce(BufferView inout, ReduceOp op, const char* name);
  // Equal contributions in rank order: all.count == size() * mine.count. `mine` may be its own
  // block of `all`; nowhere else may input and output overlap.
  void all_gather(ConstBufferView mine, BufferView all, const char* name);
  // Sum; rank r receives block r: all.count == size() * mine.count.
  void reduce_scatter(ConstBufferView all, BufferView mine, const char* name);
  // Block r of `send` goes to rank r; block r of `recv` came from rank r. Equal blocks.
  void all_to_all(ConstBufferView send, BufferView recv, const char* name);
  // The same with element counts per rank; blocks lie one after the other.
  void all_to_all_v(ConstBufferView send, const std::vector<int64_t>& send_counts, BufferView recv,
                    const std::vector<int64_t>& recv_counts, const char* name);
  void broadcast(BufferView inout, int root, const char* name);
  void barrier(const char* name);
  // A barrier that may last as long as it likes: not watched, not counted, and who waits sleeps.
  void wait_for_all() { do_wait_for_all(); }

  // The same calls in two halves, so that a rank computes while they are under way: MPI's host
  // memory moves whenever this thread calls any collective or give_way() of base/background.h.
  // Ranks start in the same order; waits may come in any order. Counted and compared at the start.
  // One process and NCCL do everything at the start.
  [[nodiscard]] Pending start_all_gather(ConstBufferView mine, BufferView all, const char* name);
  // Sums are taken in rank order, whatever the moment they are waited for.
  [[nodiscard]] Pending start_reduce_scatter(ConstBufferView all, BufferView mine,
                                             const char* name);
  // The counts are copied.
  [[nodiscard]] Pending start_all_to_all_v(ConstBufferView send,
                                           const std::vector<int64_t>& send_counts, BufferView recv,
                                           const std::vector<int64_t>& recv_counts,
                                           const char* name);

  // Ranks of equal `color` form a new communicator, ordered by `key`. Collective.
  std::unique_ptr<Communicator> split(int color, int key, const std::string& axis);

  // Calls and received bytes by collective name since construction or reset_counts().
  const std::map<std::string, CollectiveCount>& counts() const { return counts_; }
  void reset_counts() { counts_.clear(); }
  // Seconds this rank spent inside calls, waits included; what moved while it computed is not in
  // them (background_seconds()).
  double seconds() const { return seconds_; }

 protected:
  Communicator(int rank, int size, std::string axis);

  // The call under way, for messages: "all_gather 'tau' (axis feature, rank 1 of 4)".
  std::string describe_call() const;
  const char* call_name() const;
  // Lets the watchdog take this communicator and `other` (its transport, called from inside) for
  // one.
  void share_identity(const Communicator& other) { identity_ = other.identity_; }
  // Refuses device memory in a communicator that moves host memory only.
  void require_host(Device device) const;

  virtual void do_all_reduce(BufferView inout, ReduceOp op) = 0;
  virtual void do_all_gather(ConstBufferView mine, BufferView all) = 0;
  virtual void do_reduce_scatter(ConstBufferView all, BufferView mine) = 0;
  virtual void do_all_to_all_v(ConstBufferView send, const std::vector<int64_t>& send_counts,
                               BufferView recv, const std::vector<int64_t>& recv_counts) = 0;
  virtual void do_broadcast(BufferView inout, int root) = 0;
  virtual void do_barrier() = 0;
  virtual void do_wait_for_all() { do_barrier(); }
  // nullptr: all is done already, which is what these do.
  virtual std::unique_ptr<Underway> do_start_all_gather(ConstBufferView mine, BufferView all);
  virtual std::unique_ptr<Underway> do_start_reduce_scatter(ConstBufferView all, BufferView mine);
  virtual std::unique_ptr<Underway> do_start_all_to_all_v(ConstBufferView send,
                                                          const std::vector<int64_t>& send_counts,
                                                          BufferView recv,
                                                          const std::vector<int64_t>& recv_counts);
  virtual std::unique_ptr<Communicator> do_split(int color, int key, const std::string& axis) = 0;

 private:
  friend class Pending;
  class Call;  // names, times and counts one call

  // debug.check_collectives: Error of code 5 on every member if they are about to do different
  // things, or if the blocks of all_to_all_v do not fit one another. Collective.
  void compare(const Call& call);
  void compare_blocks(const std::vector<int64_t>& send_counts,
                      const std::vector<int64_t>& recv_counts);

  [[noreturn]] void refuse(const std::string& why) const;
  void check(const ConstBufferView& view, const char* what) const;
  void check_pair(const ConstBufferView& from, const ConstBufferView& to) const;
  void check_counts(const ConstBufferView& view, const std::vector<int64_t>& counts,
                    const char* what) const;
  // The checks and the count of each collective, before anything moves.
  void begin_all_gather(Call& call, const ConstBufferView& mine, const BufferView& all) const;
  void begin_reduce_scatter(Call& call, const ConstBufferView& all, const BufferView& mine) const;
  void begin_all_to_all_v(Call& call, const ConstBufferView& send,
                          const std::vector<int64_t>& send_counts, const BufferView& recv,
                          const std::vector<int64_t>& recv_counts);

  int rank_;
  int size_;
  std::string axis_;
  std::map<std::string, CollectiveCount> counts_;
  double seconds_ = 0;
  // The same on all members, so that the watchdog can compare how often each has called.
  uint64_t identity_;
  int64_t arrivals_ = 0;
  uint64_t splits_ = 0;
  const Call* call_ = nullptr;  // the one under way
};

// Seconds of this process in give_way(), moving what was started.
double background_seconds();

}  // namespace megadict
