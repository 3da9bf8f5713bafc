// Streams, events, devices: a stream is a queue that advances only when an event behind it is asked
// for, and an event says "not ready" at least once.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <stdexcept>

#include "standin.h"

using nccl_standin::Task;

struct CUstream_st {
  std::deque<std::unique_ptr<Task>> tasks;
  int64_t queued = 0, done = 0;

  void add(std::unique_ptr<Task> task) {
    tasks.push_back(std::move(task));
    ++queued;
    if (tasks.size() == 1) tasks.front()->begin();
  }

  bool advance_to(int64_t position) {
    while (done < position) {
      if (!tasks.front()->advance()) return false;
      tasks.pop_front();
      ++done;
      if (!tasks.empty()) tasks.front()->begin();
    }
    return true;
  }
};

struct CUevent_st {
  CUstream_st* stream = nullptr;
  int64_t position = 0;
  bool asked = false;
};

namespace nccl_standin {

namespace {

constexpr char kPoison = static_cast<char>(0xA5);
int visible_gpus = 64, first_bus = 1;

CUstream_st& of(cudaStream_t stream) {
  static CUstream_st default_stream;
  return stream == nullptr ? default_stream : *stream;
}

class Copy : public Task {
 public:
  Copy(void* to, const void* from, size_t bytes) : to_(to), from_(from), bytes_(bytes) {}
  void begin() override {
    held_.input(from_, bytes_);
    held_.output(to_, bytes_);
  }
  bool advance() override {
    if (!held_.touched().empty())
      throw std::logic_error("cudaMemcpyAsync: " + held_.touched() + " before it was done");
    if (!held_.value().empty()) std::memcpy(to_, held_.value().data(), held_.value().size());
    return true;
  }

 private:
  void* to_;
  const void* from_;
  size_t bytes_;
  HeldBuffers held_;
};

class WaitFor : public Task {
 public:
  explicit WaitFor(const CUevent_st& event) : stream_(*event.stream), position_(event.position) {}
  bool advance() override { return stream_.advance_to(position_); }

 private:
  CUstream_st& stream_;
  int64_t position_;
};

}  // namespace

void set_visible_gpus(int count) {
  visible_gpus = count;
}

void set_pci_bus(int first) {
  first_bus = first;
}

void enqueue(cudaStream_t stream, std::unique_ptr<Task> task) {
  of(stream).add(std::move(task));
}

void HeldBuffers::input(const void* data, size_t bytes) {
  input_ = static_cast<const char*>(data);
  value_.assign(input_, input_ + bytes);
}

void HeldBuffers::output(void* data, size_t bytes) {
  output_ = static_cast<const char*>(data);
  output_bytes_ = bytes;
  std::memset(data, kPoison, bytes);
  in_place_ = input_ != nullptr && input_ < output_ + bytes && output_ < input_ + value_.size();
}

std::string HeldBuffers::touched() const {
  if (input_ != nullptr && !in_place_ && !std::equal(value_.begin(), value_.end(), input_))
    return "the input changed";
  const auto written = [](char c) { return c != kPoison; };
  if (std::any_of(output_, output_ + output_bytes_, written)) return "the output was written to";
  return "";
}

}  // namespace nccl_standin

using nccl_standin::of;

const char* cudaGetErrorString(cudaError_t error) {
  constexpr const char* kTexts[] = {"no error",
                                    "invalid argument",
                                    "invalid device ordinal",
                                    "no CUDA-capable device is detected",
                                    "device not ready",
                                    "an empty NCCL group is open"};
  return kTexts[error];
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {&of(stream), of(stream).queued, false};
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->stream == nullptr) return cudaErrorInvalidValue;
  const bool first = !event->asked;
  event->asked = true;
  const int64_t in_open_group = nccl_standin::blame_open_group();
  if (in_open_group >= 0) return in_open_group == 0 ? cudaErrorOpenGroup : cudaErrorNotReady;
  return !first && event->stream->advance_to(event->position) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->stream == nullptr) return cudaErrorInvalidValue;
  if (event->stream->done < event->position)
    nccl_standin::enqueue(stream, std::make_unique<nccl_standin::WaitFor>(*event));
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  nccl_standin::enqueue(stream, std::make_unique<nccl_standin::Copy>(to, from, bytes));
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  attributes->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = nccl_standin::visible_gpus;
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int device) {
  return device < nccl_standin::visible_gpus ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  const std::string text = fmt::format("0000:{:02x}:00.0", nccl_standin::first_bus + device);
  if (static_cast<int>(text.size()) >= length) return cudaErrorInvalidValue;
  std::strcpy(id, text.c_str());
  return cudaSuccess;
}
