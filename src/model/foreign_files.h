// What the readers and writers of other tools' folders share: settings and tensors that are checked
// before they are believed.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/formats.h"

namespace megadict {

// A JSON object of settings. A value of the wrong kind is an Error (exit 3) that names file, key
// and kind; null counts as absent, but for settings without which the rest means nothing.
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
  void refuse_null(const std::string& key) const;
  ForeignConfig object_or_empty(const std::string& key) const;
  [[noreturn]] void refuse(const std::string& what, const std::string& hint = "") const;

 private:
  const nlohmann::json& value(const std::string& key) const;
  std::string path_;
  nlohmann::json object_;
};

// One tensor of a file, and how to get it as fp32 (integers, too, where the file's kind can).
struct ForeignTensor {
  std::string name, stored_dtype;
  bool is_float = false;
  std::vector<int64_t> shape;
  std::function<void(float* to)> read;
};

// The tensors of a file of whatever kind. Holds the file open.
struct ForeignTensors {
  std::string path;
  std::vector<ForeignTensor> tensors;
  std::map<std::string, std::string> texts = {};             // what it says besides
  const ForeignTensor* find(const std::string& name) const;  // nullptr if absent
  const ForeignTensor& at(const std::string& name) const;    // exit 3, naming what it holds
};
// By the file's ending: .safetensors, .pt, .npz. Exit 3 for what cannot be read.
ForeignTensors open_tensors(const std::string& path);

// A float tensor of exactly this shape, as fp32. Exit 3 otherwise.
at::Tensor read_tensor(const ForeignTensors& file, const std::string& name,
                       const std::vector<int64_t>& shape);
// One number, an integer or a fraction.
double read_number(const ForeignTensors& file, const std::string& name);
// Exit 3 where the file holds other tensors than these.
void expect_tensors(const ForeignTensors& file, const std::vector<std::string>& names);

TensorToWrite tensor_to_write(const std::string& name, const at::Tensor& tensor);

// A whole dictionary without normalisation, of relu unless the caller says otherwise. W_enc [n, d],
// W_dec [n, d], fp32.
PlainDictionary make_foreign(at::Tensor w_enc_nd, at::Tensor w_dec_nd, at::Tensor b_dec_d);

// The number in "blocks.8.hook_resid_pre", "layers.10", "h.3.mlp"; -1 without one.
int64_t layer_of_hook(const std::string& hook);

extern const Format kSaelensFormat;
extern const Format kSparsifyFormat;
extern const Format kDictionaryLearningFormat;
extern const Format kOpenmossFormat;
extern const Format kOpenaiFormat;
extern const Format kGemmaNpzFormat;

}  // namespace megadict
