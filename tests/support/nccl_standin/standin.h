// A stand-in for CUDA streams and NCCL on host memory, over MPI. It runs nothing before somebody
// asks for its completion, and then checks what real NCCL would answer with a hang or with wrong
// numbers: that all ranks of a communicator do the same thing in the same order with the same count
// and type, that groups are closed, that sends and receives match, and that nobody touched a buffer
// between queueing and completion (outputs are poisoned meanwhile, inputs compared).
//
// These are its controls. README.md of src/comm says how to link it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace nccl_standin {

void set_visible_gpus(int count);  // per rank, 64 at first; 0 = none
void set_pci_bus(int first);       // GPU g of this rank is at bus first + g
void set_patience_s(double s);     // after which a silent rank is named; 60 at first
double patience_s();
int64_t operations_done();

// Work on a stream.
class Task {
 public:
  virtual ~Task() = default;
  // Nothing is before it on its stream any more: from now on its buffers are its own.
  virtual void begin() {}
  // True once it is done; false to be asked again (for ever, where it failed).
  virtual bool advance() = 0;
};
void enqueue(cudaStream_t stream, std::unique_ptr<Task> task);

// Calls in a group that has no ncclGroupEnd yet, -1 where no group is open. Tells their
// communicators.
int64_t blame_open_group();

// Memory that a queued operation reads or writes.
class HeldBuffers {
 public:
  // The bytes that the operation will read; `value()` keeps them.
  void input(const void* data, size_t bytes);
  // The bytes it will write; until then they hold nonsense.
  void output(void* data, size_t bytes);
  // "" or which of them changed meanwhile.
  std::string touched() const;
  const std::vector<char>& value() const { return value_; }

 private:
  const char* input_ = nullptr;
  const char* output_ = nullptr;
  size_t output_bytes_ = 0;
  bool in_place_ = false;
  std::vector<char> value_;
};

}  // namespace nccl_standin
