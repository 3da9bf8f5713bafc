// What a communicator of the stand-in is, and an operation on it.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "nccl.h"
#include "standin.h"

struct ncclComm {
  int rank = 0, size = 1;
  MPI_Comm mpi = MPI_COMM_NULL;  // stays so in a world of one, without MPI
  ncclResult_t error = ncclSuccess;
  std::string message;

  void fail(ncclResult_t code, const std::string& why) {
    if (error != ncclSuccess) return;
    error = code;
    message = why;
  }
};

namespace nccl_standin {

enum Kind : int32_t { kAllReduce, kAllGather, kReduceScatter, kBroadcast, kExchange };
// `type` in the order of ncclDataType_t.
size_t size_of_type(int type);

struct Operation {
  Kind kind;
  const void* send;
  void* recv;
  size_t count;
  ncclDataType_t type;
  int op;    // 0 where there is none
  int root;  // root, or the peer of a send or receive
  ncclComm* comm;
  cudaStream_t stream;
  size_t bytes() const { return count * size_of_type(type); }
};

int as_int(size_t n);

// A collective, or all sends and receives of one group on one communicator and stream.
std::unique_ptr<Task> make_task(std::vector<Operation> operations);

}  // namespace nccl_standin
