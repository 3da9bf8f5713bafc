// Dictionaries in other tools' layouts: written by `megadict export`, read
// by `megadict import`, `megadict eval` and `model.init_from`.
//
// What is written holds no normalisation: it is folded into the weights (folding.h), so that the
// peer's code takes raw rows and returns raw rows.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/folding.h"
#include "model/saved.h"

namespace megadict {

// F3 for training, which keeps the rows unit: decoder rows of this shard to unit length, the
// encoder's by the inverse, so that z w_dec stays what it was. Exact for relu; topk then selects by
// z |w_dec|. Rows that are unit up to rounding keep their bits. Returns the largest | |w_dec| - 1 |
// found. A tied dictionary has no such form and is left alone.
double unit_decoder_rows(Dictionary& dictionary);

// A dictionary of ours as files hold one; it must be whole. One with another encoder or decoder
// comes without tensors.
PlainDictionary plain_of(SavedDictionary saved);
// The reverse. Exit 3, naming `path`, for what this program has no model of. batchtopk with
// thresholds that differ is jumprelu; jumprelu with one threshold for all latents is batchtopk's
// inference, without a threshold relu.
SavedDictionary saved_of(PlainDictionary plain, const std::string& path);

// Where an exported dictionary came from; for the metadata.
struct ExportNote {
  ExportScale scale = ExportScale::unit;
  double normalize_scale = 1.0;  // of the dictionary before folding
  std::string activation;        // before F1
};

// One activation in one format.
struct Held {
  std::string_view activation, as;
  bool subtracts_b_dec = true;
};

struct Format {
  std::string_view name, summary;
  std::span<const Held> held;
  bool unit_rows;  // with --scale unit, decoder rows are made so (F3)
  bool unit_only;  // there is no other scale
  double least_threshold;
  void (*write)(const PlainDictionary& folded, const ExportNote& note, const std::string& folder);
  bool (*recognises)(const std::string& path);  // by the names of its files
  // As the files say it: before absorbed().
  PlainDictionary (*read)(const std::string& path);
};

std::span<const Format> all_formats();
const Format& format_named(const std::string& name);  // exit 2 for another name

// Why this dictionary cannot be written in this format, one sentence; "" = it can.
std::string problem_of(const Format& format, const PlainDictionary& plain,
                       ExportScale scale = ExportScale::unit);
std::string problem_of(const Format& format, const SavedDictionary& saved,
                       ExportScale scale = ExportScale::unit);

// Writes a dictionary to a folder that does not exist yet or is empty. The folder appears complete
// or not at all, and only after it was read back and found equal. Exit 2 for what the format cannot
// hold and for a folder with content, exit 3 for weights that are not finite, exit 1 where writing
// or reading back fails.
void export_dictionary(PlainDictionary plain, const Format& format, ExportScale scale,
                       const std::string& folder);
void export_dictionary(SavedDictionary saved, const Format& format, ExportScale scale,
                       const std::string& folder);

// nullptr where no format knows the folder or file.
const Format* foreign_format(const std::string& path);
// A dictionary as foreign_format() tells, or `format` where that is given; exit 3 with the reason
// where the files are of no known format, damaged, or compute something this program has no model
// for.
PlainDictionary load_plain(const std::string& path, const Format* format = nullptr);
SavedDictionary load_foreign(const std::string& path, const Format* format = nullptr);

}  // namespace megadict
