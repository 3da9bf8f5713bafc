#include "comm/communicator.h"

#include <fmt/format.h>

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <numeric>

#include "base/background.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/philox.h"
#include "comm/backends.h"
#include "comm/call_watch.h"
#include "comm/collective_check.h"
#include "comm/launch.h"

namespace megadict {

namespace {

constexpr const char* kOpNames[] = {"sum", "max", "min", "bit_or"};

// Of a part of a communicator: equal on its members, different from other parts and other splits.
uint64_t identity_of_part(uint64_t parent, uint64_t split, int color) {
  const Rng mix{parent, Purpose::split, split & 0xFFFFFFFFFFull};
  return mix.bits64(static_cast<uint64_t>(color)) | 0x100;  // the small ones are taken
}

}  // namespace

// Lives as long as one public call: tells the watchdog, counts and times.
class Communicator::Call {
 public:
  struct Facts {
    const char* kind;
    const char* name;
    DType dtype = DType::u8;
    int64_t count = -1;  // -1: it may differ between ranks
    const char* op = "";
    int root = -1;
  };

  Call(Communicator& owner, const Facts& facts)
      : facts_(facts), owner_(owner), timer_(owner.seconds_) {
    owner_.call_ = this;
    enter_call({facts.kind, facts.name, owner.axis_.c_str(), owner.identity_, ++owner.arrivals_});
  }
  ~Call() {
    leave_call();
    owner_.call_ = nullptr;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // After the arguments were found good: counts, and compares with the other ranks if asked to.
  void begin(int64_t bytes) {
    CollectiveCount& count = owner_.counts_[facts_.name];
    count.kind = facts_.kind;
    ++count.calls;
    count.bytes += bytes;
    if (checking_collectives()) owner_.compare(*this);
  }
  const Facts& facts() const { return facts_; }

 private:
  Facts facts_;
  Communicator& owner_;
  Timer timer_;
};

Communicator::Communicator(int rank, int size, std::string axis)
    : rank_(rank), size_(size), axis_(std::move(axis)), identity_(kWorldCommunicator) {}

Communicator::~Communicator() {
  if (identity_ != kWorldCommunicator) forget_communicator(identity_);
}

std::string Communicator::describe_call() const {
  const std::string where = fmt::format("axis {}, rank {} of {}", axis_, rank_, size_);
  if (call_ == nullptr) return where;
  return fmt::format("{} '{}' ({})", call_->facts().kind, call_->facts().name, where);
}

const char* Communicator::call_name() const {
  return call_ == nullptr ? "" : call_->facts().name;
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
  Call call(*this, {"all_reduce", name, inout.dtype, inout.count, kOpNames[static_cast<int>(op)]});
  check(inout, "the buffer");
  if (op == ReduceOp::bit_or && !is_unsigned(inout.dtype))
    refuse(fmt::format("bit_or of {}; it takes unsigned integers", name_of(inout.dtype)));
  const int64_t full = static_cast<int64_t>(inout.bytes());
  call.begin(op == ReduceOp::bit_or ? full * (size_ - 1) : 2 * full * (size_ - 1) / size_);
  do_all_reduce(inout, op);
}

void Communicator::begin_all_gather(Call& call, const ConstBufferView& mine,
                                    const BufferView& all) const {
  check_pair(mine, all);
  if (all.count != mine.count * size_)
    refuse(fmt::format("output holds {} elements, {} ranks of {} need {}", all.count, size_,
                       mine.count, mine.count * size_));
  const auto* own_block = static_cast<const char*>(all.data) + mine.bytes() * rank_;
  if (mine.data != own_block && overlap(mine, all)) refuse("input and output overlap");
  call.begin(static_cast<int64_t>(mine.bytes()) * (size_ - 1));
}

void Communicator::all_gather(ConstBufferView mine, BufferView all, const char* name) {
  Call call(*this, {"all_gather", name, mine.dtype, mine.count});
  begin_all_gather(call, mine, all);
  do_all_gather(mine, all);
}

void Communicator::begin_reduce_scatter(Call& call, const ConstBufferView& all,
                                        const BufferView& mine) const {
  check_pair(all, mine);
  if (all.count != mine.count * size_)
    refuse(fmt::format("input holds {} elements, {} ranks of {} need {}", all.count, size_,
                       mine.count, mine.count * size_));
  if (overlap(all, mine)) refuse("input and output overlap");
  call.begin(static_cast<int64_t>(mine.bytes()) * (size_ - 1));
}

void Communicator::reduce_scatter(ConstBufferView all, BufferView mine, const char* name) {
  Call call(*this, {"reduce_scatter", name, mine.dtype, mine.count, "sum"});
  begin_reduce_scatter(call, all, mine);
  do_reduce_scatter(all, mine);
}

void Communicator::all_to_all(ConstBufferView send, BufferView recv, const char* name) {
  Call call(*this, {"all_to_all", name, send.dtype, send.count});
  check_pair(send, recv);
  if (send.count != recv.count || send.count % size_ != 0)
    refuse(
        fmt::format("{} elements in, {} out, not {} equal blocks", send.count, recv.count, size_));
  if (overlap(send, recv)) refuse("input and output overlap");
  const std::vector<int64_t> counts(static_cast<size_t>(size_), send.count / size_);
  call.begin(static_cast<int64_t>(recv.bytes()) / size_ * (size_ - 1));
  do_all_to_all_v(send, counts, recv, counts);
}

void Communicator::begin_all_to_all_v(Call& call, const ConstBufferView& send,
                                      const std::vector<int64_t>& send_counts,
                                      const BufferView& recv,
                                      const std::vector<int64_t>& recv_counts) {
  check_pair(send, recv);
  check_counts(send, send_counts, "the input");
  check_counts(recv, recv_counts, "the output");
  if (overlap(send, recv)) refuse("input and output overlap");
  const int64_t own = recv_counts[static_cast<size_t>(rank_)];
  if (own != send_counts[static_cast<size_t>(rank_)])
    refuse(fmt::format("sends {} elements to itself and expects {}",
                       send_counts[static_cast<size_t>(rank_)], own));
  call.begin((recv.count - own) * static_cast<int64_t>(size_of(recv.dtype)));
  if (checking_collectives()) compare_blocks(send_counts, recv_counts);
}

void Communicator::all_to_all_v(ConstBufferView send, const std::vector<int64_t>& send_counts,
                                BufferView recv, const std::vector<int64_t>& recv_counts,
                                const char* name) {
  Call call(*this, {"all_to_all_v", name, send.dtype});
  begin_all_to_all_v(call, send, send_counts, recv, recv_counts);
  do_all_to_all_v(send, send_counts, recv, recv_counts);
}

void Communicator::broadcast(BufferView inout, int root, const char* name) {
  Call call(*this, {"broadcast", name, inout.dtype, inout.count, "", root});
  check(inout, "the buffer");
  if (root < 0 || root >= size_) refuse(fmt::format("root {} of {} ranks", root, size_));
  call.begin(rank_ == root ? 0 : static_cast<int64_t>(inout.bytes()));
  do_broadcast(inout, root);
}

void Communicator::barrier(const char* name) {
  Call call(*this, {"barrier", name});
  call.begin(0);
  do_barrier();
}

Pending Communicator::start_all_gather(ConstBufferView mine, BufferView all, const char* name) {
  Call call(*this, {"all_gather", name, mine.dtype, mine.count});
  begin_all_gather(call, mine, all);
  return {*this, "all_gather", name, do_start_all_gather(mine, all)};
}

Pending Communicator::start_reduce_scatter(ConstBufferView all, BufferView mine, const char* name) {
  Call call(*this, {"reduce_scatter", name, mine.dtype, mine.count, "sum"});
  begin_reduce_scatter(call, all, mine);
  return {*this, "reduce_scatter", name, do_start_reduce_scatter(all, mine)};
}

Pending Communicator::start_all_to_all_v(ConstBufferView send,
                                         const std::vector<int64_t>& send_counts, BufferView recv,
                                         const std::vector<int64_t>& recv_counts,
                                         const char* name) {
  Call call(*this, {"all_to_all_v", name, send.dtype});
  begin_all_to_all_v(call, send, send_counts, recv, recv_counts);
  return {*this, "all_to_all_v", name, do_start_all_to_all_v(send, send_counts, recv, recv_counts)};
}

std::unique_ptr<Underway> Communicator::do_start_all_gather(ConstBufferView mine, BufferView all) {
  do_all_gather(mine, all);
  return nullptr;
}

std::unique_ptr<Underway> Communicator::do_start_reduce_scatter(ConstBufferView all,
                                                                BufferView mine) {
  do_reduce_scatter(all, mine);
  return nullptr;
}

std::unique_ptr<Underway> Communicator::do_start_all_to_all_v(
    ConstBufferView send, const std::vector<int64_t>& send_counts, BufferView recv,
    const std::vector<int64_t>& recv_counts) {
  do_all_to_all_v(send, send_counts, recv, recv_counts);
  return nullptr;
}

namespace {

std::vector<Underway*> moving;  // of this process; collectives are called by one thread
double moved_s = 0;

void move_all() {
  const Timer timer(moved_s);
  for (Underway* one : moving) one->poll();
}

}  // namespace

double background_seconds() {
  return moved_s;
}

Pending::Pending() noexcept = default;
Pending::Pending(Pending&& other) noexcept = default;

Pending::Pending(Communicator& owner, const char* kind, const char* name,
                 std::unique_ptr<Underway> underway)
    : owner_(&owner), kind_(kind), name_(name), underway_(std::move(underway)) {
  if (underway_ == nullptr) return;
  moving.push_back(underway_.get());
  set_background(move_all);
}

Pending& Pending::operator=(Pending&& other) noexcept {
  wait();
  owner_ = other.owner_;
  kind_ = other.kind_;
  name_ = other.name_;
  underway_ = std::move(other.underway_);
  return *this;
}

Pending::~Pending() {
  if (underway_ == nullptr) return;
  if (std::uncaught_exceptions() == 0)
    wait();
  else
    std::erase(moving, underway_.get());
}

void Pending::wait() {
  if (underway_ == nullptr) return;
  const Communicator::Call call(*owner_, {kind_, name_});
  std::erase(moving, underway_.get());
  if (moving.empty()) set_background(nullptr);
  underway_->finish();
  underway_.reset();
}

std::unique_ptr<Communicator> Communicator::split(int color, int key, const std::string& axis) {
  Call call(*this, {"split", axis.c_str()});
  if (color < 0) refuse(fmt::format("color {}; it must not be negative", color));
  if (checking_collectives()) compare(call);
  auto part = do_split(color, key, axis);
  part->identity_ = identity_of_part(identity_, splits_++, color);
  announce_communicator(part->identity_);
  return part;
}

void Communicator::compare(const Call& call) {
  const Call::Facts& facts = call.facts();
  CallRecord mine;
  std::strncpy(mine.kind, facts.kind, sizeof(mine.kind) - 1);
  std::strncpy(mine.name, facts.name, sizeof(mine.name) - 1);
  std::strncpy(mine.op, facts.op, sizeof(mine.op) - 1);
  mine.count = facts.count;
  mine.dtype = static_cast<int32_t>(facts.dtype);
  mine.root = facts.root;
  std::vector<CallRecord> all(static_cast<size_t>(size_));
  const auto bytes = static_cast<int64_t>(sizeof(CallRecord));
  do_all_gather({&mine, bytes, DType::u8, Device::cpu},
                {all.data(), bytes * size_, DType::u8, Device::cpu});
  const std::string differs = difference(all);
  if (differs.empty()) return;
  if (rank_ != 0) sleep(2);  // every member knows; the first says it, and its line ends the job
  fail(ExitCode::comm, fmt::format("ranks of axis {} do not agree: {}", axis_, differs));
}

void Communicator::compare_blocks(const std::vector<int64_t>& send_counts,
                                  const std::vector<int64_t>& recv_counts) {
  std::vector<int64_t> announced(static_cast<size_t>(size_));
  const std::vector<int64_t> one(static_cast<size_t>(size_), 1);
  do_all_to_all_v(view_of(send_counts.data(), size_), one, view_of(announced.data(), size_), one);
  for (size_t r = 0; r < announced.size(); ++r)
    if (announced[r] != recv_counts[r])
      fail(ExitCode::comm, fmt::format("{}: rank {} sends {} elements, {} are expected",
                                       describe_call(), r, announced[r], recv_counts[r]));
}

}  // namespace megadict
