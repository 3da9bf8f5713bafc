// What a run says: one line per interval on stdout, the same numbers in metrics.jsonl (under
// the names of SAELens), evaluations, the end. Rank 0 writes, and nothing is collective: who calls
// agrees on errors (comm/agree.h).
#pragma once

#include <memory>

#include "eval/metrics.h"
#include "io/json_lines.h"
#include "train/dead.h"
#include "train/loop.h"
#include "train/resample.h"

namespace megadict {

class RunLog {
 public:
  RunLog(const Mesh& mesh, const TrainJob& job);
  void begin(const TrainState& state);
  // `data_wait_s`: this rank's total so far of waiting for its
  // reader alone; rows on their way from other ranks count as communication.
  void step(const TrainState& state, const StepResult& result, const DeadCounts& counts,
            double data_wait_s);
  // Before the next step; `rows`: whose losses were looked at.
  void resampled(const TrainState& state, const Resampled& done, int64_t rows, double seconds);
  // Also written to eval.json; the final one as final/eval.json too.
  void evaluation(const TrainState& state, const MetricReport& report, bool final);
  void end(const TrainState& state);

 private:
  const Mesh& mesh_;
  const TrainJob& job_;
  std::unique_ptr<JsonLines> metrics_;  // rank 0 only
  double begin_s_ = 0, last_s_ = 0, last_data_wait_s_ = 0, last_comm_s_ = 0, last_moved_s_ = 0;
  int64_t begin_tokens_ = 0, last_tokens_ = 0;
};

// This rank's calls and received bytes so far by axis and collective.
nlohmann::ordered_json communication_by_axis(const Mesh& mesh);
// RUN/communication.json: rank 0's, and what of them the start took, beside which `megadict plan`
// can be held. Rank 0 writes. Collective over world.
void write_communication(const Mesh& mesh, const std::string& run,
                         const nlohmann::ordered_json& at_start);

}  // namespace megadict
