// Communicators and groups: the functions of NCCL.
#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "standin_operation.h"

namespace nccl_standin {

namespace {

std::string last_error;  // where there is no communicator

struct Group {
  int depth = 0;
  std::vector<Operation> operations;
};
Group group;

// Sends and receives of one communicator and stream are one batch, a collective is one of its own.
void launch(std::vector<Operation> operations) {
  std::vector<std::vector<Operation>> batches;
  for (const Operation& one : operations) {
    const auto same = [&](const std::vector<Operation>& batch) {
      return one.kind == kExchange && batch.front().kind == kExchange &&
             batch.front().comm == one.comm && batch.front().stream == one.stream;
    };
    const auto found = std::find_if(batches.begin(), batches.end(), same);
    if (found == batches.end())
      batches.push_back({one});
    else
      found->push_back(one);
  }
  for (std::vector<Operation>& batch : batches) {
    const cudaStream_t stream = batch.front().stream;
    enqueue(stream, make_task(std::move(batch)));
  }
}

ncclResult_t add(const Operation& operation) {
  ncclComm* comm = operation.comm;
  if (comm == nullptr || operation.root < 0 || operation.root >= comm->size)
    return ncclInvalidArgument;
  if (comm->error != ncclSuccess) return comm->error;
  if (group.depth > 0)
    group.operations.push_back(operation);
  else
    launch({operation});
  return ncclSuccess;
}

// A ticket to meet: rank 0 of the communicator-to-be made it.
struct Ticket {
  int32_t root_in_world;
  int32_t serial;
};

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

bool arrives_in_time(MPI_Request* request) {
  const double deadline = megadict::seconds_now() + patience_s();
  int arrived = 0;
  while (arrived == 0 && megadict::seconds_now() < deadline)
    MPI_Test(request, &arrived, MPI_STATUS_IGNORE);
  return arrived != 0;
}

// The world ranks of the members, in their order; empty with last_error set if one did not come.
std::vector<int> meet(const Ticket& ticket, int ranks, int rank) {
  const int tag = 1000 + ticket.serial % 4000;
  std::vector<int> members(static_cast<size_t>(ranks));
  MPI_Request request;
  if (rank == 0) {
    members[0] = world_rank();
    for (int others = 1; others < ranks; ++others) {
      int who[2];
      MPI_Irecv(who, 2, MPI_INT, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &request);
      if (!arrives_in_time(&request)) {
        last_error = fmt::format("only {} of {} ranks came to ncclCommInitRank", others, ranks);
        return {};
      }
      members[static_cast<size_t>(who[0])] = who[1];
    }
    for (size_t r = 1; r < members.size(); ++r)
      MPI_Send(members.data(), ranks, MPI_INT, members[r], tag + 10000, MPI_COMM_WORLD);
    return members;
  }
  const int who[2] = {rank, world_rank()};
  MPI_Send(who, 2, MPI_INT, ticket.root_in_world, tag, MPI_COMM_WORLD);
  MPI_Irecv(members.data(), ranks, MPI_INT, ticket.root_in_world, tag + 10000, MPI_COMM_WORLD,
            &request);
  if (arrives_in_time(&request)) return members;
  last_error = "rank 0 did not answer in ncclCommInitRank";
  return {};
}

}  // namespace

int64_t blame_open_group() {
  if (group.depth == 0) return -1;
  const std::string why = fmt::format(
      "a group of {} calls is open where its work is waited for: ncclGroupEnd is missing",
      group.operations.size());
  for (const Operation& one : group.operations) one.comm->fail(ncclInvalidUsage, why);
  return static_cast<int64_t>(group.operations.size());
}

}  // namespace nccl_standin

using namespace nccl_standin;

const char* ncclGetErrorString(ncclResult_t result) {
  constexpr const char* kTexts[] = {"no error", "invalid argument", "invalid usage",
                                    "remote process exited or there was a network error",
                                    "NCCL operation in progress"};
  return kTexts[result];
}

const char* ncclGetLastError(ncclComm_t comm) {
  return comm == nullptr ? last_error.c_str() : comm->message.c_str();
}

ncclResult_t ncclGetVersion(int* version) {
  *version = 0;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int32_t made = 0;
  int initialized = 0;
  MPI_Initialized(&initialized);
  const Ticket ticket{initialized != 0 ? world_rank() : 0, made++};
  *id = {};
  std::memcpy(id->internal, &ticket, sizeof(ticket));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  if (rank < 0 || rank >= ranks) return ncclInvalidArgument;
  auto made = std::make_unique<ncclComm>();
  made->rank = rank;
  made->size = ranks;
  if (ranks > 1) {
    Ticket ticket;
    std::memcpy(&ticket, id.internal, sizeof(ticket));
    const std::vector<int> members = meet(ticket, ranks, rank);
    if (members.empty()) return ncclRemoteError;
    MPI_Group world, group_of_members;
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, ranks, members.data(), &group_of_members);
    MPI_Comm_create_group(MPI_COMM_WORLD, group_of_members, ticket.serial % 4000, &made->mpi);
    MPI_Group_free(&group_of_members);
    MPI_Group_free(&world);
  }
  *comm = made.release();
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm->mpi != MPI_COMM_NULL) MPI_Comm_free(&comm->mpi);
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  delete comm;  // its MPI communicator may still have messages under way
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  *error = comm->error;
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return add({kAllReduce, send, recv, count, type, op, 0, comm, stream});
}

ncclResult_t ncclAllGather(const void* send, void* recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return add({kAllGather, send, recv, count, type, 0, 0, comm, stream});
}

ncclResult_t ncclReduceScatter(const void* send, void* recv, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return add({kReduceScatter, send, recv, count, type, op, 0, comm, stream});
}

ncclResult_t ncclBroadcast(const void* send, void* recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  return add({kBroadcast, send, recv, count, type, 0, root, comm, stream});
}

ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return add({kExchange, send, nullptr, count, type, 0, peer, comm, stream});
}

ncclResult_t ncclRecv(void* recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add({kExchange, nullptr, recv, count, type, 0, peer, comm, stream});
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth == 0) launch(std::exchange(group.operations, {}));
  return ncclSuccess;
}
