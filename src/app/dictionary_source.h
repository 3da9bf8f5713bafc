// A dictionary that a command was told to read: a run, a checkpoint, another tool's folder.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "comm/mesh.h"
#include "data/shard_index.h"
#include "eval/metrics.h"
#include "model/saved.h"

namespace megadict {

// Rank 0's answer on every rank to which folder holds it: a run that goes on may save another
// meanwhile. Collective over world. Exit 2 where there is none.
std::string dictionary_folder(const std::string& path, const std::string& weights,
                              Communicator& world);

// This rank's shard of the dictionary in a folder that dictionary_folder() gave.
SavedDictionary load_shard(const std::string& folder, const std::string& weights, int parts = 1,
                           int index = 0);

// One shard of a dictionary that was read whole.
SavedDictionary shard_of_whole(SavedDictionary saved, int parts, int index);

// PATH/eval where there is one: the rows that are held out.
std::string held_out(const std::string& path);

// Exit 3 (agreed) where a dictionary is not as wide as the rows.
void refuse_other_width(const std::string& folder, int64_t width, const std::string& data_path,
                        const ShardIndex& data);
inline void refuse_other_width(const std::string& folder, const Dictionary& dictionary,
                               const std::string& data_path, const ShardIndex& data) {
  refuse_other_width(folder, dictionary.d, data_path, data);
}

// A report with what was judged on what: the file of `eval --json`.
nlohmann::ordered_json judgement_json(const MetricReport& report, const std::string& folder,
                                      const std::string& data_path, const SavedDictionary& saved);

}  // namespace megadict
