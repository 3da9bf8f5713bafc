#include "comm/communicator.h"

#include <fmt/format.h>

#include <cstdint>
#include <numeric>

#include "base/clock.h"
#include "base/error.h"

namespace megadict {

// Lives as long as one public call. A call inside a call (NCCL asks its MPI communicator) keeps
// its own counts.
class Communicator::Call {
 public:
  Call(Communicator& owner, const char* kind, const char* name)
      : kind_(kind), name_(name), owner_(owner), timer_(owner.seconds_) {
    owner_.call_ = this;
  }
  ~Call() { owner_.call_ = nullptr; }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void count(int64_t bytes) {
    CollectiveCount& count = owner_.counts_[name_];
    ++count.calls;
    count.bytes += bytes;
  }
  const char* kind() const { return kind_; }
  const char* name() const { return name_; }

 private:
  const char* kind_;
  const char* name_;
  Communicator& owner_;
  Timer timer_;
};

std::string Communicator::describe_call() const {
  const std::string where = fmt::format("axis {}, rank {} of {}", axis_, rank_, size_);
  if (call_ == nullptr) return where;
  return fmt::format("{} '{}' ({})", call_->kind(), call_->name(), where);
}

const char* Communicator::call_name() const {
  return call_ == nullptr ? "" : call_->name();
}

void Communicator::refuse(const std::string& why) const {
  fail(ExitCode::error, describe_call() + ": " + why);
}

void Communicator::require_host(Device device) const {
  if (device == Device::cpu) return;
  fail(ExitCode::error, describe_call() + ": GPU memory given to a communicator of host memory",
       "use the one of Launch::world_for(Device::cuda)");
}

void Communicator::check(const ConstBufferView& view, const char* what) const {
  if (view.count < 0) refuse(fmt::format("{} has {} elements", what, view.count));
  if (view.count > 0 && view.data == nullptr)
    refuse(fmt::format("{} of {} elements has no memory", what, view.count));
}

namespace {

bool overlap(const ConstBufferView& a, const ConstBufferView& b) {
  if (a.count == 0 || b.count == 0) return false;
  const auto begin_a = reinterpret_cast<uintptr_t>(a.data), end_a = begin_a + a.bytes();
  const auto begin_b = reinterpret_cast<uintptr_t>(b.data), end_b = begin_b + b.bytes();
  return begin_a < end_b && begin_b < end_a;
}

bool is_unsigned(DType dtype) {
  return dtype == DType::u8 || dtype == DType::u16 || dtype == DType::u32 || dtype == DType::u64;
}

int64_t total(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace

void Communicator::check_pair(const ConstBufferView& from, const ConstBufferView& to) const {
  check(from, "the input");
  check(to, "the output");
  if (from.dtype != to.dtype)
    refuse(fmt::format("input is {}, output {}", name_of(from.dtype), name_of(to.dtype)));
  if (from.device != to.device) refuse("input and output lie on different devices");
}

void Communicator::check_counts(const ConstBufferView& view, const std::vector<int64_t>& counts,
                                const char* what) const {
  if (static_cast<int>(counts.size()) != size_)
    refuse(fmt::format("{} has {} counts for {} ranks", what, counts.size(), size_));
  for (const int64_t count : counts)
    if (count < 0) refuse(fmt::format("{} has a count of {}", what, count));
  if (total(counts) != view.count)
    refuse(fmt::format("{} holds {} elements, its counts say {}", what, view.count, total(counts)));
}

void Communicator::all_reduce(BufferView inout, ReduceOp op, const char* name) {
  Call call(*this, "all_reduce", name);
  check(inout, "the buffer");
  if (op == ReduceOp::bit_or && !is_unsigned(inout.dtype))
    refuse(fmt::format("bit_or of {}; it takes unsigned integers", name_of(inout.dtype)));
  const int64_t full = static_cast<int64_t>(inout.bytes());
  call.count(op == ReduceOp::bit_or ? full * (size_ - 1) : 2 * full * (size_ - 1) / size_);
  do_all_reduce(inout, op);
}

void Communicator::all_gather(ConstBufferView mine, BufferView all, const char* name) {
  Call call(*this, "all_gather", name);
  check_pair(mine, all);
  if (all.count != mine.count * size_)
    refuse(fmt::format("output holds {} elements, {} ranks of {} need {}", all.count, size_,
                       mine.count, mine.count * size_));
  const auto* own_block = static_cast<const char*>(all.data) + mine.bytes() * rank_;
  if (mine.data != own_block && overlap(mine, all)) refuse("input and output overlap");
  call.count(static_cast<int64_t>(mine.bytes()) * (size_ - 1));
  do_all_gather(mine, all);
}

void Communicator::reduce_scatter(ConstBufferView all, BufferView mine, const char* name) {
  Call call(*this, "reduce_scatter", name);
  check_pair(all, mine);
  if (all.count != mine.count * size_)
    refuse(fmt::format("input holds {} elements, {} ranks of {} need {}", all.count, size_,
                       mine.count, mine.count * size_));
  if (overlap(all, mine)) refuse("input and output overlap");
  call.count(static_cast<int64_t>(mine.bytes()) * (size_ - 1));
  do_reduce_scatter(all, mine);
}

void Communicator::all_to_all(ConstBufferView send, BufferView recv, const char* name) {
  Call call(*this, "all_to_all", name);
  check_pair(send, recv);
  if (send.count != recv.count || send.count % size_ != 0)
    refuse(
        fmt::format("{} elements in, {} out, not {} equal blocks", send.count, recv.count, size_));
  if (overlap(send, recv)) refuse("input and output overlap");
  const std::vector<int64_t> counts(static_cast<size_t>(size_), send.count / size_);
  call.count(static_cast<int64_t>(recv.bytes()) / size_ * (size_ - 1));
  do_all_to_all_v(send, counts, recv, counts);
}

void Communicator::all_to_all_v(ConstBufferView send, const std::vector<int64_t>& send_counts,
                                BufferView recv, const std::vector<int64_t>& recv_counts,
                                const char* name) {
  Call call(*this, "all_to_all_v", name);
  check_pair(send, recv);
  check_counts(send, send_counts, "the input");
  check_counts(recv, recv_counts, "the output");
  if (overlap(send, recv)) refuse("input and output overlap");
  const int64_t own = recv_counts[static_cast<size_t>(rank_)];
  if (own != send_counts[static_cast<size_t>(rank_)])
    refuse(fmt::format("sends {} elements to itself and expects {}",
                       send_counts[static_cast<size_t>(rank_)], own));
  call.count((recv.count - own) * static_cast<int64_t>(size_of(recv.dtype)));
  do_all_to_all_v(send, send_counts, recv, recv_counts);
}

void Communicator::broadcast(BufferView inout, int root, const char* name) {
  Call call(*this, "broadcast", name);
  check(inout, "the buffer");
  if (root < 0 || root >= size_) refuse(fmt::format("root {} of {} ranks", root, size_));
  call.count(rank_ == root ? 0 : static_cast<int64_t>(inout.bytes()));
  do_broadcast(inout, root);
}

void Communicator::barrier(const char* name) {
  Call call(*this, "barrier", name);
  call.count(0);
  do_barrier();
}

std::unique_ptr<Communicator> Communicator::split(int color, int key, const std::string& axis) {
  Call call(*this, "split", axis.c_str());
  if (color < 0) refuse(fmt::format("color {}; it must not be negative", color));
  return do_split(color, key, axis);
}

}  // namespace megadict
