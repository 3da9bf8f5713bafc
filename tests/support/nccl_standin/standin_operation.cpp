// Before an operation runs, its ranks exchange a header with everybody whom it concerns; only if
// all headers fit is data moved.
#include "standin_operation.h"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "base/buffer_view.h"
#include "base/clock.h"

namespace nccl_standin {

int as_int(size_t n) {
  return n <= INT_MAX ? static_cast<int>(n) : throw std::length_error("stand-in: too long");
}

namespace {

double patience = 60;
int64_t done_operations = 0;

struct TypeRow {
  const char* name;
  size_t size;
};
// In the order of ncclDataType_t.
constexpr TypeRow kTypes[] = {{"uint8", 1},   {"int32", 4},   {"uint32", 4},
                              {"int64", 8},   {"uint64", 8},  {"float16", 2},
                              {"float32", 4}, {"float64", 8}, {"bfloat16", 2}};

MPI_Datatype mpi_type(int type) {
  const MPI_Datatype types[] = {MPI_UINT8_T,  MPI_INT32_T, MPI_UINT32_T, MPI_INT64_T, MPI_UINT64_T,
                                MPI_UINT16_T, MPI_FLOAT,   MPI_DOUBLE,   MPI_UINT16_T};
  return types[type];
}

MPI_Op mpi_op(int op) {
  const MPI_Op ops[] = {MPI_SUM, MPI_MAX, MPI_MIN};
  return ops[op];
}

bool is_half(int type) {
  return type == ncclFloat16 || type == ncclBfloat16;
}

constexpr const char* kKinds[] = {"all_reduce", "all_gather", "reduce_scatter", "broadcast",
                                  "send/receive"};
constexpr const char* kOps[] = {"sum", "max", "min"};

// What one rank tells another about an operation.
struct Header {
  int32_t kind = kAllReduce, type = 0, op = 0, root = 0;
  uint64_t count = 0;
  uint64_t sent = 0, received = 0;  // kExchange: to and from the rank that reads this

  bool fits(const Header& other) const {
    if (kind != other.kind || type != other.type) return false;
    if (kind == kExchange) return sent == other.received && received == other.sent;
    return op == other.op && root == other.root && count == other.count;
  }
  std::string text() const {
    if (kind == kExchange)
      return fmt::format("send of {} and receive of {} {}", sent, received, kTypes[type].name);
    return fmt::format("{} ({}) of {} {} from {}", kKinds[kind], kOps[op], count, kTypes[type].name,
                       root);
  }
};

// Part by part in rank order with rounding after each, as a ring does.
void reduce_half(const std::vector<uint16_t>& parts, size_t count, int ranks, int type, int op,
                 uint16_t* result) {
  const auto widen = type == ncclBfloat16 ? megadict::bfloat16_to_float : megadict::half_to_float;
  const auto narrow = type == ncclBfloat16 ? megadict::float_to_bfloat16 : megadict::float_to_half;
  for (size_t i = 0; i < count; ++i) {
    uint16_t value = parts[i];
    for (int r = 1; r < ranks; ++r) {
      const float a = widen(value), b = widen(parts[static_cast<size_t>(r) * count + i]);
      value = narrow(op == ncclSum ? a + b : op == ncclMax ? std::max(a, b) : std::min(a, b));
    }
    result[i] = value;
  }
}

// A collective, or all sends and receives of one group on one communicator.
class Batch : public Task {
 public:
  explicit Batch(std::vector<Operation> operations)
      : operations_(std::move(operations)), comm_(*operations_.front().comm) {
    held_.resize(operations_.size());
  }

  void begin() override {
    for (size_t i = 0; i < operations_.size(); ++i) hold(operations_[i], held_[i]);
  }

  // Only a failed one still has messages under way.
  ~Batch() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized != 0) return;
    for (Peer& peer : peers_) {
      if (peer.incoming != MPI_REQUEST_NULL) MPI_Cancel(&peer.incoming);
      for (MPI_Request* request : {&peer.incoming, &peer.outgoing})
        if (*request != MPI_REQUEST_NULL) MPI_Request_free(request);
    }
  }

  bool advance() override {
    if (comm_.error != ncclSuccess) return false;
    if (!started_) start();
    if (!everybody_came() || !all_fit() || !untouched()) return false;
    move();
    ++done_operations;
    return true;
  }

 private:
  struct Peer {
    int rank;
    Header mine, theirs;
    MPI_Request incoming = MPI_REQUEST_NULL, outgoing = MPI_REQUEST_NULL;
  };

  void hold(const Operation& operation, HeldBuffers& held) const {
    const size_t bytes = operation.bytes(), ranks = static_cast<size_t>(comm_.size);
    if (operation.kind == kBroadcast) {
      if (comm_.rank == operation.root) held.input(operation.send, bytes);
      if (comm_.rank != operation.root) held.output(operation.recv, bytes);
      return;
    }
    const bool whole_input = operation.kind == kReduceScatter;
    if (operation.send != nullptr) held.input(operation.send, whole_input ? bytes * ranks : bytes);
    const bool whole_output = operation.kind == kAllGather;
    if (operation.recv != nullptr)
      held.output(operation.recv, whole_output ? bytes * ranks : bytes);
  }

  Header header_for(int peer) const {
    const Operation& first = operations_.front();
    Header header{first.kind, first.type, first.op, first.root, first.count};
    if (first.kind != kExchange) return header;
    header = {kExchange, first.type, 0, 0, 0};
    for (const Operation& one : operations_)
      if (one.root == peer) (one.send != nullptr ? header.sent : header.received) += one.count;
    return header;
  }

  void start() {
    started_ = true;
    deadline_ = megadict::seconds_now() + patience;
    for (int rank = 0; rank < comm_.size; ++rank) {
      const Header header = header_for(rank);
      const bool concerned = header.kind != kExchange || header.sent + header.received > 0;
      if (rank != comm_.rank && concerned) peers_.push_back({rank, header, {}});
    }
    for (Peer& peer : peers_) {
      MPI_Irecv(&peer.theirs, sizeof(Header), MPI_BYTE, peer.rank, 1, comm_.mpi, &peer.incoming);
      MPI_Isend(&peer.mine, sizeof(Header), MPI_BYTE, peer.rank, 1, comm_.mpi, &peer.outgoing);
    }
  }

  bool everybody_came() {
    std::string silent;
    for (Peer& peer : peers_) {
      int arrived = 0;
      MPI_Test(&peer.incoming, &arrived, MPI_STATUS_IGNORE);
      if (arrived == 0) silent += fmt::format(" {}", peer.rank);
    }
    if (silent.empty()) return true;
    if (megadict::seconds_now() > deadline_)
      comm_.fail(ncclRemoteError, fmt::format("{}: no sign for {} s of rank{}",
                                              header_for(0).text(), patience, silent));
    return false;
  }

  bool all_fit() {
    for (const Peer& peer : peers_)
      if (!peer.mine.fits(peer.theirs))
        comm_.fail(ncclInvalidUsage, fmt::format("rank {} is at {}, rank {} at {}", peer.rank,
                                                 peer.theirs.text(), comm_.rank, peer.mine.text()));
    return comm_.error == ncclSuccess;
  }

  bool untouched() {
    for (size_t i = 0; i < held_.size(); ++i) {
      const std::string touched = held_[i].touched();
      if (!touched.empty())
        comm_.fail(ncclInvalidUsage, fmt::format("{}: {} before it was done",
                                                 header_for(operations_[i].root).text(), touched));
    }
    return comm_.error == ncclSuccess;
  }

  void move() {
    for (Peer& peer : peers_) MPI_Wait(&peer.outgoing, MPI_STATUS_IGNORE);
    if (operations_.front().kind == kExchange) return exchange();
    const Operation& one = operations_.front();
    const std::vector<char>& input = held_.front().value();
    if (comm_.size == 1) {
      if (!input.empty()) std::memmove(one.recv, input.data(), input.size());
      return;
    }
    const int count = as_int(one.count), bytes = as_int(one.bytes());
    const MPI_Datatype type = mpi_type(one.type);
    if (one.kind == kAllGather)
      MPI_Allgather(input.data(), bytes, MPI_BYTE, one.recv, bytes, MPI_BYTE, comm_.mpi);
    if (one.kind == kBroadcast) {
      void* data = comm_.rank == one.root ? const_cast<void*>(one.send) : one.recv;
      MPI_Bcast(data, bytes, MPI_BYTE, one.root, comm_.mpi);
      if (data != one.recv) std::memmove(one.recv, data, one.bytes());
    }
    if (one.kind == kAllReduce && !is_half(one.type))
      MPI_Allreduce(input.data(), one.recv, count, type, mpi_op(one.op), comm_.mpi);
    if (one.kind == kReduceScatter && !is_half(one.type))
      MPI_Reduce_scatter_block(input.data(), one.recv, count, type, mpi_op(one.op), comm_.mpi);
    if ((one.kind == kAllReduce || one.kind == kReduceScatter) && is_half(one.type))
      move_half(one, input);
  }

  void move_half(const Operation& one, const std::vector<char>& input) {
    const auto ranks = static_cast<size_t>(comm_.size);
    std::vector<uint16_t> parts(one.count * ranks);
    const int bytes = as_int(one.bytes());
    if (one.kind == kAllReduce)
      MPI_Allgather(input.data(), bytes, MPI_BYTE, parts.data(), bytes, MPI_BYTE, comm_.mpi);
    else
      MPI_Alltoall(input.data(), bytes, MPI_BYTE, parts.data(), bytes, MPI_BYTE, comm_.mpi);
    reduce_half(parts, one.count, comm_.size, one.type, one.op, static_cast<uint16_t*>(one.recv));
  }

  void exchange() {
    std::vector<MPI_Request> requests;
    const std::vector<char>* to_self = nullptr;
    for (size_t i = 0; i < operations_.size(); ++i) {
      const Operation& one = operations_[i];
      const std::vector<char>& input = held_[i].value();
      if (one.root == comm_.rank) {
        if (one.send != nullptr) to_self = &input;
        continue;
      }
      requests.emplace_back();
      if (one.send != nullptr)
        MPI_Isend(input.data(), as_int(input.size()), MPI_BYTE, one.root, 2, comm_.mpi,
                  &requests.back());
      else
        MPI_Irecv(one.recv, as_int(one.bytes()), MPI_BYTE, one.root, 2, comm_.mpi,
                  &requests.back());
    }
    for (const Operation& one : operations_)
      if (one.root == comm_.rank && one.recv != nullptr && to_self != nullptr)
        std::memcpy(one.recv, to_self->data(), to_self->size());
    MPI_Waitall(as_int(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  }

  std::vector<Operation> operations_;
  ncclComm& comm_;
  std::vector<HeldBuffers> held_;
  std::vector<Peer> peers_;
  bool started_ = false;
  double deadline_ = 0;
};

}  // namespace

size_t size_of_type(int type) {
  return kTypes[type].size;
}

std::unique_ptr<Task> make_task(std::vector<Operation> operations) {
  return std::make_unique<Batch>(std::move(operations));
}

void set_patience_s(double s) {
  patience = s;
}

double patience_s() {
  return patience;
}

int64_t operations_done() {
  return done_operations;
}

}  // namespace nccl_standin
