// GPU memory over NCCL. Each communicator is built from a host one (MPI, or self): that one carries
// the NCCL id, vectors in host memory (a few scalars a step), and what NCCL has no operation for
// (bit_or, staged through host memory). The NCCL communicator itself is made inside the first call
// that needs it, where the watchdog sees it; an axis that is never used costs nothing.
//
// A call queues its work on an own stream behind everything on the default stream, and waits for
// it, polling NCCL's asynchronous errors.
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <exception>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "comm/backends.h"
#include "comm/call_watch.h"

namespace megadict {

namespace {

// Copies bits, so a type of the same width serves where NCCL lacks one (uint16).
ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f16:
    case DType::u16:
      return ncclFloat16;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    case DType::u8:
      return ncclUint8;
    case DType::u32:
      return ncclUint32;
    case DType::u64:
      return ncclUint64;
  }
  fail(ExitCode::error, "no NCCL type");
}

ncclRedOp_t nccl_op(ReduceOp op) {
  if (op == ReduceOp::max) return ncclMax;
  return op == ReduceOp::min ? ncclMin : ncclSum;
}

// Views say where memory lies; a host view is checked, since NCCL alone may touch GPU memory.
bool in_gpu_memory(const ConstBufferView& view) {
  if (view.device == Device::cuda) return true;
  cudaPointerAttributes attributes{};
  return cudaPointerGetAttributes(&attributes, view.data) == cudaSuccess &&
         attributes.type == cudaMemoryTypeDevice;
}

class NcclCommunicator final : public Communicator {
 public:
  explicit NcclCommunicator(std::unique_ptr<Communicator> host)
      : Communicator(host->rank(), host->size(), host->axis()), host_(std::move(host)) {
    share_identity(*host_);
  }

  ~NcclCommunicator() override {
    if (comm_ == nullptr) return;
    remove_abort_hook(this);
    // Others may never come to an orderly end of a communicator that failed here.
    if (failed_ || std::uncaught_exceptions() > 0) {
      ncclCommAbort(comm_);
    } else {
      ncclCommDestroy(comm_);
    }
    cudaEventDestroy(ready_);
    cudaEventDestroy(done_);
    cudaStreamDestroy(stream_);
  }

 private:
  void check(cudaError_t code) {
    if (code == cudaSuccess) return;
    failed_ = true;
    fail(ExitCode::comm,
         fmt::format("{}: CUDA says {}", describe_call(), cudaGetErrorString(code)));
  }

  void check(ncclResult_t code) {
    if (code == ncclSuccess) return;
    failed_ = true;
    const char* detail = ncclGetLastError(comm_);
    const bool told = detail != nullptr && detail[0] != '\0';
    fail(ExitCode::comm,
         fmt::format("{}: NCCL says {}{}{}", describe_call(), ncclGetErrorString(code),
                     told ? ": " : "", told ? detail : ""),
         "NCCL_DEBUG=WARN tells more");
  }

  void connect() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    check(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
    check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
    ncclUniqueId id{};
    if (rank() == 0) check(ncclGetUniqueId(&id));
    host_->broadcast({&id, sizeof(id), DType::u8, Device::cpu}, 0, "nccl id");
    check(ncclCommInitRank(&comm_, size(), id, rank()));
    add_abort_hook(this, [](void* self) { static_cast<NcclCommunicator*>(self)->stop(); });
  }

  // From the watchdog's thread. The thread that waits in wait() must abort: the handle it polls
  // ends with the abort.
  void stop() {
    stop_asked_ = true;
    while (!stopped_) usleep(1000);  // the watchdog waits two seconds at most
  }

  // What follows on the own stream comes after all that was queued on the default stream.
  void begin() {
    if (comm_ == nullptr) connect();
    check(cudaEventRecord(ready_, nullptr));
    check(cudaStreamWaitEvent(stream_, ready_, 0));
  }

  void wait() {
    check(cudaEventRecord(done_, stream_));
    const double start = seconds_now();
    for (;;) {
      const cudaError_t status = cudaEventQuery(done_);
      if (status == cudaSuccess) return;
      if (status != cudaErrorNotReady) check(status);
      ncclResult_t error = ncclSuccess;
      check(ncclCommGetAsyncError(comm_, &error));
      if (error != ncclInProgress) check(error);
      if (stop_asked_) {
        ncclCommAbort(comm_);
        stopped_ = true;
        for (;;) pause();  // the watchdog ends this process
      }
      if (seconds_now() - start < 1e-3) {
        std::this_thread::yield();
      } else {
        usleep(50);
      }
    }
  }

  void bit_or_on_host(BufferView inout) {
    std::vector<char> staged(inout.bytes());
    begin();
    check(
        cudaMemcpyAsync(staged.data(), inout.data, inout.bytes(), cudaMemcpyDeviceToHost, stream_));
    wait();
    host_->all_reduce({staged.data(), inout.count, inout.dtype, Device::cpu}, ReduceOp::bit_or,
                      call_name());
    check(
        cudaMemcpyAsync(inout.data, staged.data(), inout.bytes(), cudaMemcpyHostToDevice, stream_));
    wait();
  }

  void do_all_reduce(BufferView inout, ReduceOp op) override {
    if (!in_gpu_memory(inout)) return host_->all_reduce(inout, op, call_name());
    if (inout.count == 0) return;
    if (op == ReduceOp::bit_or) return bit_or_on_host(inout);
    require_reducible(inout.dtype);
    begin();
    check(ncclAllReduce(inout.data, inout.data, static_cast<size_t>(inout.count),
                        nccl_type(inout.dtype), nccl_op(op), comm_, stream_));
    wait();
  }

  void do_all_gather(ConstBufferView mine, BufferView all) override {
    if (!in_gpu_memory(mine)) return host_->all_gather(mine, all, call_name());
    if (mine.count == 0) return;
    begin();
    check(ncclAllGather(mine.data, all.data, static_cast<size_t>(mine.count), nccl_type(mine.dtype),
                        comm_, stream_));
    wait();
  }

  void do_reduce_scatter(ConstBufferView all, BufferView mine) override {
    if (!in_gpu_memory(all)) return host_->reduce_scatter(all, mine, call_name());
    if (mine.count == 0) return;
    require_reducible(all.dtype);
    begin();
    check(ncclReduceScatter(all.data, mine.data, static_cast<size_t>(mine.count),
                            nccl_type(all.dtype), ncclSum, comm_, stream_));
    wait();
  }

  void do_all_to_all_v(ConstBufferView send, const std::vector<int64_t>& send_counts,
                       BufferView recv, const std::vector<int64_t>& recv_counts) override {
    if (!in_gpu_memory(send))
      return host_->all_to_all_v(send, send_counts, recv, recv_counts, call_name());
    const ncclDataType_t type = nccl_type(send.dtype);
    const size_t width = size_of(send.dtype);
    const auto* from = static_cast<const char*>(send.data);
    auto* to = static_cast<char*>(recv.data);
    begin();
    check(ncclGroupStart());
    for (int peer = 0; peer < size(); ++peer) {
      const auto sent = static_cast<size_t>(send_counts[static_cast<size_t>(peer)]);
      const auto received = static_cast<size_t>(recv_counts[static_cast<size_t>(peer)]);
      if (sent > 0) check(ncclSend(from, sent, type, peer, comm_, stream_));
      if (received > 0) check(ncclRecv(to, received, type, peer, comm_, stream_));
      from += sent * width;
      to += received * width;
    }
    check(ncclGroupEnd());
    wait();
  }

  void do_broadcast(BufferView inout, int root) override {
    if (!in_gpu_memory(inout)) return host_->broadcast(inout, root, call_name());
    if (inout.count == 0) return;
    begin();
    check(ncclBroadcast(inout.data, inout.data, static_cast<size_t>(inout.count),
                        nccl_type(inout.dtype), root, comm_, stream_));
    wait();
  }

  // Every call waits for its own work, so nothing is left on the GPU to wait for.
  void do_barrier() override { host_->barrier(call_name()); }

  std::unique_ptr<Communicator> do_split(int color, int key, const std::string& axis) override {
    return std::make_unique<NcclCommunicator>(host_->split(color, key, axis));
  }

  void require_reducible(DType dtype) const {
    if (dtype == DType::u16)
      fail(ExitCode::error, describe_call() + ": NCCL does not reduce uint16", "use uint32");
  }

  std::unique_ptr<Communicator> host_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ready_ = nullptr, done_ = nullptr;
  bool failed_ = false;
  std::atomic<bool> stop_asked_{false}, stopped_{false};
};

// One rank's trouble becomes everybody's error: all ranks stop with the sentence of the first rank
// that has one. Collective.
void agree(Communicator& host, const std::string& problem, const std::string& hint) {
  int32_t first = problem.empty() ? host.size() : host.rank();
  host.all_reduce(view_of(&first, 1), ReduceOp::min, "gpu check");
  if (first == host.size()) return;
  char text[512] = "";
  std::strncpy(text, problem.c_str(), sizeof(text) - 1);
  host.broadcast({text, sizeof(text), DType::u8, Device::cpu}, first, "gpu check");
  fail_agreed(ExitCode::usage, text, hint);
}

struct GpuOfRank {
  int32_t node = 0;
  char pci_id[32] = "";
};

// Ranks of one node that chose the same GPU, as a sentence, or "".
std::string shared_gpu(const std::vector<GpuOfRank>& gpus) {
  for (size_t a = 0; a < gpus.size(); ++a)
    for (size_t b = a + 1; b < gpus.size(); ++b)
      if (gpus[a].node == gpus[b].node && std::strcmp(gpus[a].pci_id, gpus[b].pci_id) == 0)
        return fmt::format("run.device cuda: ranks {} and {} of one node share the GPU {}", a, b,
                           gpus[a].pci_id);
  return "";
}

void choose_gpu(Communicator& host, LaunchFacts& facts) {
  int visible = 0;
  const cudaError_t status = cudaGetDeviceCount(&visible);
  std::string problem;
  if (status != cudaSuccess || visible == 0)
    problem = fmt::format("run.device cuda: no GPU on {} (CUDA says {})", facts.host,
                          cudaGetErrorString(status));
  agree(host, problem, "--run.device cpu, or ask the scheduler for --gpus-per-node");

  // Where each process sees one GPU, somebody has dealt them out already.
  facts.gpu = visible == 1 ? 0 : facts.local_rank % visible;
  GpuOfRank mine{facts.node};
  cudaError_t chosen = cudaSetDevice(facts.gpu);
  if (chosen == cudaSuccess)
    chosen = cudaDeviceGetPCIBusId(mine.pci_id, sizeof(mine.pci_id), facts.gpu);
  if (chosen != cudaSuccess)
    problem = fmt::format("run.device cuda: cannot use GPU {} of {} (CUDA says {})", facts.gpu,
                          facts.host, cudaGetErrorString(chosen));
  agree(host, problem, "nvidia-smi shows who holds it");
  facts.gpu_pci_id = mine.pci_id;

  std::vector<GpuOfRank> all(static_cast<size_t>(host.size()));
  const auto bytes = static_cast<int64_t>(sizeof(mine));
  host.all_gather({&mine, bytes, DType::u8, Device::cpu},
                  {all.data(), bytes * host.size(), DType::u8, Device::cpu}, "gpu check");
  agree(host, shared_gpu(all),
        "one rank per GPU: srun --ntasks-per-node=N --gpus-per-node=N --gpu-bind=none");
}

}  // namespace

std::unique_ptr<Communicator> make_device_world(Communicator& host, LaunchFacts& facts) {
  choose_gpu(host, facts);
  return std::make_unique<NcclCommunicator>(host.split(0, host.rank(), host.axis()));
}

std::string gpu_support() {
  int version = 0, visible = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "NCCL does not tell its version";
  const cudaError_t status = cudaGetDeviceCount(&visible);
  std::string text =
      fmt::format("NCCL {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  if (status != cudaSuccess || visible == 0)
    return text + fmt::format(", no GPU ({})", cudaGetErrorString(status));
  for (int gpu = 0; gpu < visible; ++gpu) {
    char pci_id[32] = "";
    cudaDeviceGetPCIBusId(pci_id, sizeof(pci_id), gpu);
    text += fmt::format("{}{}", gpu == 0 ? ", GPUs " : ", ", pci_id);
  }
  return text;
}

}  // namespace megadict
