// What the readers and writers of other tools' folders share: settings and tensors that are checked
// before they are believed.
#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/formats.h"

namespace megadict {

// A JSON object of settings. A value of the wrong kind is an Error (exit 3) that names file, key
// and kind; null counts as absent.
class ForeignConfig {
 public:
  explicit ForeignConfig(const std::string& path);
  ForeignConfig(std::string path, nlohmann::json object);

  const std::string& path() const { return path_; }
  bool has(const std::string& key) const;
  bool is_text(const std::string& key) const { return has(key) && object_[key].is_string(); }
  int64_t integer(const std::string& key) const;  // must be there; 4.0 is no integer
  int64_t integer_or(const std::string& key, int64_t otherwise) const;
  int64_t size(const std::string& key) const;  // an integer from 1 to 2^31 - 1
  double number(const std::string& key) const;
  bool flag_or(const std::string& key, bool otherwise) const;
  std::string text_or(const std::string& key, const std::string& otherwise) const;
  ForeignConfig object_or_empty(const std::string& key) const;
  [[noreturn]] void refuse(const std::string& what, const std::string& hint = "") const;

 private:
  const nlohmann::json& value(const std::string& key) const;
  std::string path_;
  nlohmann::json object_;
};

// A float tensor of exactly this shape, as fp32. Exit 3 otherwise.
at::Tensor read_tensor(const SafetensorsFile& file, const std::string& name,
                       const std::vector<int64_t>& shape);
// Exit 3 where the file holds other tensors than these.
void expect_tensors(const SafetensorsFile& file, const std::vector<std::string>& names);

TensorToWrite tensor_to_write(const std::string& name, const at::Tensor& tensor);

// `problem` of formats that hold one linear encoder and decoder and these activations.
std::string linear_problem(const SavedDictionary& saved, std::string_view format,
                           const std::vector<std::string>& activations);

// A whole dictionary with linear encoder and decoder and no normalisation. W_enc [n, d], W_dec
// [n, d], fp32.
SavedDictionary make_foreign(const std::string& activation, int64_t k, at::Tensor w_enc_nd,
                             at::Tensor w_dec_nd, at::Tensor b_enc_n, at::Tensor b_dec_d);

// The number in "blocks.8.hook_resid_pre", "layers.10", "h.3.mlp"; -1 without one.
int64_t layer_of_hook(const std::string& hook);

// k as a format that selects exactly k of n can say it.
int64_t selectable_k(const SavedDictionary& saved);

extern const Format kSaelensFormat;
extern const Format kSparsifyFormat;

}  // namespace megadict
