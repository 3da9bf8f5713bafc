// megadict encode: the sparse codes of a data set as compressed rows in HDF5, on the mesh.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "app/commands.h"
#include "app/dictionary_source.h"
#include "app/options.h"
#include "app/together.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/watchdog.h"
#include "eval/encode.h"

namespace megadict {

namespace {

struct EncodeOptions {
  std::string run, checkpoint, dictionary, data, out, weights = "last";
  int64_t tokens = 0, batch_size = 4096;
  int threads = 0;
  MeshConfig mesh;
};

OptionSet options(EncodeOptions& own) {
  return {
      .command = "encode",
      .summary = "Writes the sparse codes of every row: row_ptr, indices, values (CSR) in HDF5.",
      .fields =
          {{"run.dir", &own.run, "", "folder of a run"},
           {"checkpoint", &own.checkpoint, "", "this checkpoint instead of the newest weights"},
           {"dictionary", &own.dictionary, "", "another tool's dictionary, instead of a run"},
           {"data.path", &own.data, "", "shards: this folder itself, not its eval/"},
           {"out", &own.out, "", "HDF5 file to write"},
           {"weights", &own.weights, "", "the last ones or their average", one_of({"last", "ema"})},
           {"eval.tokens", &own.tokens, "rows", "the first so many; 0 = all", between(0, 1e15)},
           {"data.batch_size", &own.batch_size, "rows", "of a pass; changes memory and speed",
            between(1, 1e9)},
           {"mesh.data", &own.mesh.data, "ranks", "parts of the batch; 0 = auto",
            between(0, 1048576)},
           {"mesh.feature", &own.mesh.feature, "ranks", "parts of the dictionary; 0 = auto",
            between(0, 1048576)},
           {"run.threads", &own.threads, "threads", "per rank; 0 = cpus / ranks that share them",
            between(0, 4096)}},
      .required = {"data.path", "out"}};
}

std::string path_of(const EncodeOptions& own) {
  if (own.run.empty() == own.dictionary.empty() && own.checkpoint.empty())
    fail_agreed(ExitCode::usage, "encode takes either --run.dir or --dictionary");
  if (!own.checkpoint.empty()) return own.checkpoint;
  return own.run.empty() ? own.dictionary : own.run;
}

}  // namespace

std::string help_encode() {
  EncodeOptions own;
  return help_text(options(own));
}

int run_encode(Launch& launch, const Args& args) {
  EncodeOptions own;
  read_options(options(own), args);
  const std::string path = path_of(own);
  start_watchdog({});
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  const Mesh mesh = make_mesh(launch.world(), own.mesh);
  refuse_output_files(launch.world(), {own.out});
  const std::string folder = dictionary_folder(path, own.weights, launch.world());
  SavedDictionary saved;
  ShardIndex data;
  rank_zero_first(launch.world(), [&] {
    saved = load_shard(folder, own.weights, mesh.feature_size(), mesh.feature_index);
    data = ShardIndex::open(own.data);
  });
  refuse_other_shards(launch.world(), data, own.data);
  refuse_outputs_among(data, {own.out});
  refuse_other_width(folder, saved.dictionary, own.data, data);
  const EncodedFile written =
      encode_data_set(mesh, saved.dictionary, saved.normalization, data,
                      {own.out, folder, own.data, own.tokens, own.batch_size});
  say(fmt::format("wrote {} codes of {} rows, {:.2f} a row, to {}", written.entries, written.rows,
                  static_cast<double>(written.entries) / static_cast<double>(written.rows),
                  own.out));
  return 0;
}

}  // namespace megadict
