// Inside io only: the part of Python's pickle format that torch.save writes for tensors, apart from
// any file. Nothing is ever executed: names of Python objects are compared with a short list, and
// everything else is refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer_view.h"

namespace megadict {

// What a pickle holds. Members of lists and dictionaries are indices into the same vector.
struct PickleValue {
  enum class Kind { none, truth, integer, number, text, list, dict, global, storage, tensor };
  Kind kind = Kind::none;
  int64_t integer = 0;  // also truth; of a storage its elements
  double number = 0;
  std::string text;                     // also a global's name; of a storage its record's
  DType dtype = DType::f32;             // of a storage
  std::vector<int64_t> members;         // tuple and list; dict: key, value, key, value, ...
  std::vector<int64_t> shape, strides;  // of a tensor, in elements
  int64_t storage = -1, offset = 0;     // of a tensor: index of its storage, first element
};

// Names of tensors and of storages' records are copied as often as a file likes to use them.
inline constexpr size_t kLongestPickleName = 1024;

struct Pickle {
  std::vector<PickleValue> values;
  int64_t root = -1;
};

// Exit 3 with `path` for what is no such pickle. Every tensor lies inside its storage's elements,
// which the caller must compare with the bytes there are.
Pickle parse_pickle(std::string_view text, const std::string& path);

// Protocol 2, for what write_pt() writes.
class PickleWriter {
 public:
  PickleWriter();
  void begin_dict() { text_ += "}("; }
  void end_dict() { text_ += 'u'; }
  void add_text(std::string_view text);
  void add_tensor(const std::vector<int64_t>& shape, DType dtype, const std::string& record);
  std::string finish();

 private:
  void add_integer(int64_t value);
  void add_tuple(const std::vector<int64_t>& values);
  void add_global(std::string_view module, std::string_view name);
  std::string text_;
};

}  // namespace megadict
