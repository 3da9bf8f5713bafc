// Dictionaries in other tools' layouts (formats.md section 2): written by `megadict export`, read
// by `megadict import`, `megadict eval` and `model.init_from`.
//
// What is written holds no normalisation: it is folded into the weights in fp64, in the order of
// formats.md 2.1, so that the peer's code takes raw rows and returns raw rows. Decoder rows keep
// the norm they have (F3 is for formats that want unit rows; those here hold any norm).
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/saved.h"

namespace megadict {

// F2. unit: the decoder keeps its norm, latents become z / s. trained: latents keep their size,
// W_enc *= s, W_dec /= s; s is the normalisation's scale.
enum class ExportScale { unit, trained };
// Exit 2 for another word.
ExportScale export_scale_named(const std::string& name);
std::string_view name_of(ExportScale scale);

// The same function of raw rows, its normalisation the identity, its decoder linear (a tied one
// becomes two tensors), on the CPU. Of one that is moved in, each tensor goes as its copy comes.
SavedDictionary folded(SavedDictionary saved, ExportScale scale);

// F3: decoder rows of this shard to unit length, the encoder's by the inverse, so that z w_dec
// stays what it was; for training, which keeps the rows unit. Exact for relu; topk then selects by
// z |w_dec|. Rows that are unit up to rounding keep their bits. Returns the largest | |w_dec| - 1 |
// found. A tied dictionary has no such form and is left alone.
double unit_decoder_rows(Dictionary& dictionary);

// Where an exported dictionary came from; for the metadata.
struct ExportNote {
  ExportScale scale = ExportScale::unit;
  double normalize_scale = 1.0;  // of the dictionary before folding
};

struct Format {
  std::string_view name, summary;
  // Why this dictionary cannot be written in this format, one sentence; "" = it can.
  std::string (*problem)(const SavedDictionary& saved);
  void (*write)(const SavedDictionary& folded, const ExportNote& note, const std::string& folder);
  bool (*recognises)(const std::string& folder);  // by the names of its files
  SavedDictionary (*read)(const std::string& folder);
};

std::span<const Format> all_formats();
const Format& format_named(const std::string& name);  // exit 2 for another name

// Writes `saved`, which must hold all latents, to a folder that does not exist yet or is empty.
// The folder appears complete or not at all, and only after it was read back and found equal.
// Exit 2 for what the format cannot hold and for a folder with content, exit 3 for weights that are
// not finite, exit 1 where writing or reading back fails.
void export_dictionary(SavedDictionary saved, const Format& format, ExportScale scale,
                       const std::string& folder);

// nullptr where no format knows the folder.
const Format* foreign_format(const std::string& folder);
// A dictionary as foreign_format() tells; exit 3 with the reason where the folder is of no known
// format, damaged, or computes something this program has no model for.
SavedDictionary load_foreign(const std::string& folder);

}  // namespace megadict
