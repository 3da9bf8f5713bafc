// The planted dictionary of `data synth`, and how far a learned one has found it.
#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "comm/mesh.h"
#include "model/dictionary.h"

namespace megadict {

// W_dec [n, width] of FOLDER/truth.safetensors; width 0 = any. Exit 3 for another width or an
// unreadable file.
at::Tensor read_truth(const std::string& folder, int64_t width);

// Exit 2 for a deep decoder (B5): its rows are no directions of the data.
void refuse_deep_decoder(const Dictionary& dictionary, std::string_view what);

// Prints mcc, mcc_cosine and mmcs beside what a random dictionary scores; returns the same as
// JSON, alike on every rank. Exit 2 for a deep decoder. Collective over feature.
nlohmann::ordered_json judge_against_truth(const Mesh& mesh, const Dictionary& dictionary,
                                           const at::Tensor& truth_nd);

}  // namespace megadict
