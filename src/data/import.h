// `megadict data import`: activation files from elsewhere become shards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/activation_source.h"

namespace megadict {

struct ImportOptions {
  std::string from;  // a file, a folder of files of one kind, or a glob
  std::string out;   // folder; must not exist or be empty
  double eval_fraction = 0.05;
  SourceOptions source;
  std::string store;  // element type of the shards; "" = the files' own
  // What the shards say about themselves; "" and -1 = unknown.
  std::string model, hook, tokenizer;
  int64_t layer = -1;
  uint64_t seed = 0;  // of the choice of evaluation documents
};

struct ImportReport {
  int64_t files = 0, training_rows = 0, eval_rows = 0, masked_rows = 0, width = 0;
  DType dtype = DType::f32;
  bool split_by_document = false;
  double mean_norm = 0, median_norm = 0;
  double share_above_10_medians = 0;  // of rows: candidates for data.max_norm_multiple
  double gamma = 0;  // |mean| / |standard deviation|: much above 1 predicts dead latents
  std::vector<std::string> advice;  // what these numbers suggest, a line each
};

// Writes OUT/*.h5 and OUT/eval/*.h5, reads everything back and verifies it, then gives OUT its
// name. Evaluation rows: whole documents chosen by seed where every file says `document`, otherwise
// the last part of each file. Rows a `mask` excludes are left out. Exit 3 naming file and row for
// rows that are not finite, and naming both files for widths or types that differ.
ImportReport import_activations(const ImportOptions& options);

// The report as lines to print.
std::vector<std::string> describe(const ImportReport& report);

}  // namespace megadict
