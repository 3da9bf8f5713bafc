// Inside io only: the JSON header of a safetensors file, apart from any file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"

namespace megadict {

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in data order
  SafetensorsMetadata metadata;
};

// Checks everything: known element types, shape times element size = span, spans that cover
// `data_bytes` without hole or overlap. Throws Error (exit 3) that begins with `path`.
SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_bytes,
                                           const std::string& path);

std::string_view safetensors_name_of(DType dtype);

}  // namespace megadict
