// All metrics of a dictionary on a data set, in one pass over the mesh.
#pragma once

#include <span>

#include "comm/mesh.h"
#include "data/batch_stream.h"
#include "data/normalization.h"
#include "data/shard_index.h"
#include "eval/metrics.h"
#include "model/dictionary.h"

namespace megadict {

struct EvaluateArgs {
  int64_t rows = 0;           // the first so many rows; 0 = all
  int64_t batch_rows = 4096;  // global; shows below 1e-8 of a result
};

// Collective over the mesh; `dictionary` is this rank's shard. Every rank gets the report. Numbers
// are those of raw rows: normalisation is undone.
MetricReport evaluate(const Mesh& mesh, const Dictionary& dictionary,
                      const Normalization& normalization, const ShardIndex& data,
                      const EvaluateArgs& args);

// Global rows as a micro-batch of their own, in fp32: those that this rank owns.
MicroBatch read_owned(const Mesh& mesh, const ShardIndex& data, std::span<const int64_t> rows);

// Decoder rows of the whole dictionary [n, d] on every rank. Collective over feature.
std::vector<float> gather_decoder(const Mesh& mesh, const Dictionary& dictionary);

}  // namespace megadict
