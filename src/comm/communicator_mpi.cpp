// Host memory over MPI 3.1. Vectors longer than a C int are moved in chunks; sums of half-precision
// values are exchanged as they are, added in fp32 in rank order and rounded once, which moves as
// many bytes as a ring would. Collectives in two halves are messages from rank to rank.
#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>

#include "base/error.h"
#include "base/range.h"
#include "comm/backends.h"
#include "comm/rank_sums.h"

namespace megadict {

namespace {

int64_t chunk_elements = int64_t{1} << 28;

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    case DType::i32:
      return MPI_INT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::u8:
      return MPI_UINT8_T;
    case DType::u32:
      return MPI_UINT32_T;
    case DType::u64:
      return MPI_UINT64_T;
    case DType::f16:
    case DType::bf16:
    case DType::u16:
      return MPI_UINT16_T;
  }
  fail(ExitCode::error, "no MPI type");
}

bool is_half(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16;
}

// max or min of half-precision values; exact, so the element type stays as it is.
template <float (*widen)(uint16_t), bool want_max>
void half_extreme(void* in, void* inout, int* count, MPI_Datatype*) {
  const auto* a = static_cast<const uint16_t*>(in);
  auto* b = static_cast<uint16_t*>(inout);
  for (int i = 0; i < *count; ++i)
    if (want_max ? widen(a[i]) > widen(b[i]) : widen(a[i]) < widen(b[i])) b[i] = a[i];
}

// The operation of (dtype, max or min) on half precision, made on first use and kept: MPI frees it.
MPI_Op half_op(DType dtype, ReduceOp op) {
  static MPI_Op made[2][2] = {{MPI_OP_NULL, MPI_OP_NULL}, {MPI_OP_NULL, MPI_OP_NULL}};
  static constexpr MPI_User_function* kFunctions[2][2] = {
      {half_extreme<half_to_float, false>, half_extreme<half_to_float, true>},
      {half_extreme<bfloat16_to_float, false>, half_extreme<bfloat16_to_float, true>}};
  const int type = dtype == DType::bf16, want_max = op == ReduceOp::max;
  MPI_Op& slot = made[type][want_max];
  if (slot == MPI_OP_NULL) MPI_Op_create(kFunctions[type][want_max], 1, &slot);
  return slot;
}

MPI_Op mpi_op(DType dtype, ReduceOp op) {
  if (op == ReduceOp::sum) return MPI_SUM;
  if (is_half(dtype)) return half_op(dtype, op);
  return op == ReduceOp::max ? MPI_MAX : MPI_MIN;
}

char* at(void* data, int64_t element, DType dtype) {
  return static_cast<char*>(data) + static_cast<size_t>(element) * size_of(dtype);
}
const char* at(const void* data, int64_t element, DType dtype) {
  return static_cast<const char*>(data) + static_cast<size_t>(element) * size_of(dtype);
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MPI_Comm comm, int rank, int size, const std::string& axis)
      : Communicator(rank, size, axis), comm_(comm) {}

  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Freeing is collective: not while an error of this rank alone unwinds.
    if (finalized == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

 private:
  struct Block {
    int64_t begin;
    int64_t count;
  };

  void check(int code) const {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    fail(ExitCode::comm,
         fmt::format("{}: MPI says {}", describe_call(), std::string(text, length)));
  }

  // Starts to send block r of `send` to rank r and to fill block r of `recv` from rank r, point to
  // point, in chunks: counts may differ from rank to rank, so no rank could decide alone to chunk a
  // collective. Ranks post in the same order, so messages need no tags.
  void post(ConstBufferView send, const std::vector<Block>& send_blocks, BufferView recv,
            const std::vector<Block>& recv_blocks, std::vector<MPI_Request>& requests) {
    const DType dtype = recv.dtype;
    const MPI_Datatype type = mpi_type(dtype);
    const auto each = [&](const Block& block, auto&& call) {
      for (int64_t done = 0; done < block.count; done += chunk_elements) {
        const int count = static_cast<int>(std::min(chunk_elements, block.count - done));
        requests.emplace_back(MPI_REQUEST_NULL);
        check(call(block.begin + done, count, &requests.back()));
      }
    };
    for (int i = 1; i < size(); ++i) {
      const int from = (rank() + size() - i) % size();
      each(recv_blocks[static_cast<size_t>(from)], [&](int64_t first, int count, MPI_Request* r) {
        return MPI_Irecv(at(recv.data, first, dtype), count, type, from, 0, comm_, r);
      });
    }
    for (int i = 1; i < size(); ++i) {
      const int to = (rank() + i) % size();
      each(send_blocks[static_cast<size_t>(to)], [&](int64_t first, int count, MPI_Request* r) {
        return MPI_Isend(at(send.data, first, dtype), count, type, to, 0, comm_, r);
      });
    }
    const Block own = send_blocks[static_cast<size_t>(rank())];
    char* target = at(recv.data, recv_blocks[static_cast<size_t>(rank())].begin, dtype);
    const char* source = at(send.data, own.begin, dtype);
    if (own.count > 0 && target != source)
      std::memcpy(target, source, static_cast<size_t>(own.count) * size_of(dtype));
  }

  void exchange(ConstBufferView send, const std::vector<Block>& send_blocks, BufferView recv,
                const std::vector<Block>& recv_blocks) {
    requests_.clear();
    post(send, send_blocks, recv, recv_blocks, requests_);
    check(MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE));
  }

  // Messages of a collective that was started, and what is left to do when they are there.
  struct Messages final : Underway {
    explicit Messages(const MpiCommunicator& its) : owner(its) {}

    void poll() noexcept override {
      int all = 0;
      if (code == MPI_SUCCESS)
        code = MPI_Testall(static_cast<int>(requests.size()), requests.data(), &all,
                           MPI_STATUSES_IGNORE);
    }
    void finish() override {
      owner.check(code);
      owner.check(
          MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE));
      if (then) then();
    }

    const MpiCommunicator& owner;
    std::vector<MPI_Request> requests;
    std::unique_ptr<char[]> parts;  // everybody's share of a sum
    std::function<void()> then;
    int code = MPI_SUCCESS;
  };

  static std::vector<Block> blocks_of(const std::vector<int64_t>& counts) {
    std::vector<Block> blocks;
    int64_t begin = 0;
    for (const int64_t count : counts) {
      blocks.push_back({begin, count});
      begin += count;
    }
    return blocks;
  }

  // Part r of `count` elements for rank r, as even as can be.
  std::vector<Block> parts_of(int64_t count) const {
    std::vector<Block> blocks;
    for (int r = 0; r < size(); ++r) {
      const Range part = shard_of(count, size(), r);
      blocks.push_back({part.begin, part.size()});
    }
    return blocks;
  }

  // Everybody's share of the sum of rank r's part: exchange, then add. `mine` receives it.
  void sum_half_part(ConstBufferView all, const std::vector<Block>& parts, uint16_t* mine) {
    const int64_t count = parts[static_cast<size_t>(rank())].count;
    halves_.resize(static_cast<size_t>(count * size()));
    const std::vector<int64_t> equal(static_cast<size_t>(size()), count);
    exchange(all, parts, {halves_.data(), count * size(), all.dtype, Device::cpu},
             blocks_of(equal));
    sum_in_rank_order({halves_.data(), count * size(), all.dtype, Device::cpu}, size(),
                      {mine, count, all.dtype, Device::cpu});
  }

  void all_reduce_half_sum(BufferView inout) {
    const std::vector<Block> parts = parts_of(inout.count);
    const Block own = parts[static_cast<size_t>(rank())];
    auto* values = static_cast<uint16_t*>(inout.data);
    sum_half_part(inout, parts, values + own.begin);
    const std::vector<Block> same(static_cast<size_t>(size()), own);
    exchange(inout, same, inout, parts);
  }

  void all_reduce_bit_or(BufferView inout) {
    std::vector<uint8_t> all(inout.bytes() * static_cast<size_t>(size()));
    const auto bytes = static_cast<int64_t>(inout.bytes());
    do_all_gather({inout.data, bytes, DType::u8, Device::cpu},
                  {all.data(), bytes * size(), DType::u8, Device::cpu});
    auto* bits = static_cast<uint8_t*>(inout.data);
    for (int r = 0; r < size(); ++r)
      for (int64_t i = 0; i < bytes; ++i) bits[i] |= all[static_cast<size_t>(r * bytes + i)];
  }

  void do_all_reduce(BufferView inout, ReduceOp op) override {
    require_host(inout.device);
    if (op == ReduceOp::bit_or) return all_reduce_bit_or(inout);
    if (op == ReduceOp::sum && is_half(inout.dtype)) return all_reduce_half_sum(inout);
    for (int64_t done = 0; done < inout.count; done += chunk_elements) {
      const int count = static_cast<int>(std::min(chunk_elements, inout.count - done));
      check(MPI_Allreduce(MPI_IN_PLACE, at(inout.data, done, inout.dtype), count,
                          mpi_type(inout.dtype), mpi_op(inout.dtype, op), comm_));
    }
  }

  void do_all_gather(ConstBufferView mine, BufferView all) override {
    require_host(mine.device);
    if (mine.count == 0) return;
    if (all.count > chunk_elements) {
      const std::vector<Block> same(static_cast<size_t>(size()), {0, mine.count});
      const std::vector<int64_t> counts(static_cast<size_t>(size()), mine.count);
      return exchange(mine, same, all, blocks_of(counts));
    }
    const MPI_Datatype type = mpi_type(all.dtype);
    const bool in_place = mine.data == at(all.data, mine.count * rank(), all.dtype);
    const int count = static_cast<int>(mine.count);
    check(MPI_Allgather(in_place ? MPI_IN_PLACE : mine.data, count, type, all.data, count, type,
                        comm_));
  }

  void do_reduce_scatter(ConstBufferView all, BufferView mine) override {
    require_host(all.device);
    if (mine.count == 0) return;
    if (is_half(all.dtype)) {
      const std::vector<int64_t> counts(static_cast<size_t>(size()), mine.count);
      return sum_half_part(all, blocks_of(counts), static_cast<uint16_t*>(mine.data));
    }
    const MPI_Datatype type = mpi_type(all.dtype);
    if (all.count <= chunk_elements) {
      check(MPI_Reduce_scatter_block(all.data, mine.data, static_cast<int>(mine.count), type,
                                     MPI_SUM, comm_));
      return;
    }
    // Long blocks: the same range of every block is packed and reduced, range after range.
    const int64_t step = std::max<int64_t>(1, chunk_elements / size());
    std::vector<char> packed(static_cast<size_t>(step * size()) * size_of(all.dtype));
    for (int64_t done = 0; done < mine.count; done += step) {
      const int64_t count = std::min(step, mine.count - done);
      for (int r = 0; r < size(); ++r)
        std::memcpy(at(packed.data(), r * count, all.dtype),
                    at(all.data, r * mine.count + done, all.dtype),
                    static_cast<size_t>(count) * size_of(all.dtype));
      check(MPI_Reduce_scatter_block(packed.data(), at(mine.data, done, all.dtype),
                                     static_cast<int>(count), type, MPI_SUM, comm_));
    }
  }

  void do_all_to_all_v(ConstBufferView send, const std::vector<int64_t>& send_counts,
                       BufferView recv, const std::vector<int64_t>& recv_counts) override {
    require_host(send.device);
    exchange(send, blocks_of(send_counts), recv, blocks_of(recv_counts));
  }

  std::unique_ptr<Underway> do_start_all_gather(ConstBufferView mine, BufferView all) override {
    require_host(mine.device);
    auto messages = std::make_unique<Messages>(*this);
    const std::vector<Block> same(static_cast<size_t>(size()), {0, mine.count});
    const std::vector<int64_t> counts(static_cast<size_t>(size()), mine.count);
    post(mine, same, all, blocks_of(counts), messages->requests);
    return messages;
  }

  // Every rank's share of my block, added when all are there.
  std::unique_ptr<Underway> do_start_reduce_scatter(ConstBufferView all, BufferView mine) override {
    require_host(all.device);
    auto messages = std::make_unique<Messages>(*this);
    messages->parts = std::make_unique_for_overwrite<char[]>(all.bytes());
    const BufferView parts{messages->parts.get(), all.count, all.dtype, Device::cpu};
    const std::vector<int64_t> counts(static_cast<size_t>(size()), mine.count);
    post(all, blocks_of(counts), parts, blocks_of(counts), messages->requests);
    messages->then = [parts, mine, ranks = size()] { sum_in_rank_order(parts, ranks, mine); };
    return messages;
  }

  std::unique_ptr<Underway> do_start_all_to_all_v(
      ConstBufferView send, const std::vector<int64_t>& send_counts, BufferView recv,
      const std::vector<int64_t>& recv_counts) override {
    require_host(send.device);
    auto messages = std::make_unique<Messages>(*this);
    post(send, blocks_of(send_counts), recv, blocks_of(recv_counts), messages->requests);
    return messages;
  }

  void do_broadcast(BufferView inout, int root) override {
    require_host(inout.device);
    for (int64_t done = 0; done < inout.count; done += chunk_elements) {
      const int count = static_cast<int>(std::min(chunk_elements, inout.count - done));
      check(
          MPI_Bcast(at(inout.data, done, inout.dtype), count, mpi_type(inout.dtype), root, comm_));
    }
  }

  void do_barrier() override { check(MPI_Barrier(comm_)); }

  void do_wait_for_all() override {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibarrier(comm_, &request));
    for (int all = 0; all == 0; usleep(20'000)) check(MPI_Test(&request, &all, MPI_STATUS_IGNORE));
  }

  std::unique_ptr<Communicator> do_split(int color, int key, const std::string& axis) override;

  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
  std::vector<uint16_t> halves_;
};

// Takes `comm` over.
std::unique_ptr<Communicator> adopt(MPI_Comm comm, const std::string& axis) {
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  int rank = 0, size = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  return std::make_unique<MpiCommunicator>(comm, rank, size, axis);
}

std::unique_ptr<Communicator> MpiCommunicator::do_split(int color, int key,
                                                        const std::string& axis) {
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(comm_, color, key, &part));
  return adopt(part, axis);
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_world() {
  MPI_Comm world = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &world);
  return adopt(world, "world");
}

int64_t mpi_chunk_elements() {
  return chunk_elements;
}

void set_mpi_chunk_elements(int64_t elements) {
  chunk_elements = std::clamp<int64_t>(elements, 1, int64_t{1} << 30);
}

}  // namespace megadict
