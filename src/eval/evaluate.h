// All metrics of a dictionary on a data set, in one pass over the mesh.
#pragma once

#include <span>

#include "comm/mesh.h"
#include "data/batch_stream.h"
#include "data/normalization.h"
#include "data/shard_index.h"
#include "eval/bootstrap.h"
#include "eval/latent_statistics.h"
#include "eval/metrics.h"
#include "model/dictionary.h"

namespace megadict {

struct EvaluateArgs {
  int64_t rows = 0;           // the first so many rows; 0 = all
  int64_t batch_rows = 4096;  // global, of a pass; at most a peers' batch
  // Of the batches by which peers average (PeerMetric, explained_variance_legacy): rows [0, so
  // many), the next so many, ..., whatever a pass or a rank holds.
  int64_t peer_batch_rows = 4096;
  BootstrapOptions bootstrap = {};
  LatentStatistics* latents = nullptr;  // also told of all codes; of evaluate() alone
  bool heeds_stop = false;  // evaluate_all() ends after a batch that any rank's signal came in
};

// One of several dictionaries that are judged in one pass: this rank's shard.
struct Judged {
  const Dictionary& dictionary;
  const Normalization& normalization;
  LatentStatistics* latents = nullptr;
};

// Collective over the mesh; `dictionary` is this rank's shard. Every rank gets the report. Numbers
// are those of raw rows: normalisation is undone. Codes and reconstructions are exact
// (Sums::exact), so mesh and batch show in the last digits of fp64 sums alone.
MetricReport evaluate(const Mesh& mesh, const Dictionary& dictionary,
                      const Normalization& normalization, const ShardIndex& data,
                      const EvaluateArgs& args);

// The same for several dictionaries of the data's width, which need not be alike otherwise: a batch
// is read and sent once, then goes through one after the other. Each report has the bits that
// evaluate() gives it. None where a signal stopped the pass.
std::vector<MetricReport> evaluate_all(const Mesh& mesh, std::span<const Judged> judged,
                                       const ShardIndex& data, const EvaluateArgs& args);

// Global rows as a micro-batch of their own, in fp32: those that this rank owns.
MicroBatch read_owned(const Mesh& mesh, const ShardIndex& data, std::span<const int64_t> rows);

// Decoder rows of the whole dictionary [n, d] on every rank. Collective over feature.
std::vector<float> gather_decoder(const Mesh& mesh, const Dictionary& dictionary);

}  // namespace megadict
