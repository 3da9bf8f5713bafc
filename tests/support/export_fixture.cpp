// For tests/py/test_export.py.
//
//   export_fixture write FOLDER    random dictionaries: FOLDER/CASE/native.safetensors and
//                                  FOLDER/CASE/FORMAT.SCALE for every format that holds the case
//   export_fixture read FOLDER OUT OUT.safetensors = the dictionary in a foreign folder
//
// A native file: the tensors by their names (model/folding.h), mean, and activation, k, scale as
// metadata.
#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "model/formats.h"
#include "model/tensor_views.h"
#include "support/plain_dictionary.h"

namespace megadict {
namespace {

void write_native(const PlainDictionary& plain, const std::string& path) {
  at::Tensor mean = at::zeros({plain.d}, at::kFloat);
  if (!plain.normalization.mean.empty()) mean = at::tensor(plain.normalization.mean);
  std::vector<at::Tensor> kept;
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, member] : tensors_of(plain.activation))
    kept.push_back((plain.*member).contiguous());
  size_t next = 0;
  for (const auto& [name, member] : tensors_of(plain.activation)) {
    const at::Tensor& tensor = kept[next++];
    tensors.push_back({std::string(name), tensor.sizes().vec(), view_of(tensor)});
  }
  tensors.push_back({"mean", mean.sizes().vec(), view_of(std::as_const(mean))});
  write_safetensors(path, tensors,
                    {{"activation", plain.activation},
                     {"k", fmt::format("{}", plain.k)},
                     {"scale", fmt::format("{}", plain.normalization.scale)},
                     {"hook", plain.hook},
                     {"layer", fmt::format("{}", plain.layer)}});
}

void write_cases(const std::string& folder) {
  for (const std::string& activation : test::plain_activations())
    for (const char* decoder : {"linear", "tied"}) {
      const std::string at = fmt::format("{}/{}_{}", folder, activation, decoder);
      const PlainDictionary plain = test::random_plain(activation, decoder);
      make_folders(at);
      write_native(plain, at + "/native.safetensors");
      for (const Format& format : all_formats())
        for (const ExportScale scale : {ExportScale::unit, ExportScale::trained})
          if (problem_of(format, plain, scale).empty())
            export_dictionary(plain, format, scale,
                              fmt::format("{}/{}.{}", at, format.name, name_of(scale)));
    }
}

int run(const std::vector<std::string>& words) {
  if (words.size() == 3 && words[1] == "write") {
    write_cases(words[2]);
  } else if (words.size() == 4 && words[1] == "read") {
    write_native(load_plain(words[2]), words[3]);
  } else {
    fail(ExitCode::usage, "export_fixture write FOLDER | read FOLDER OUT");
  }
  return 0;
}

}  // namespace
}  // namespace megadict

int main(int argc, char** argv) {
  try {
    return megadict::run({argv, argv + argc});
  } catch (const megadict::Error& error) {
    megadict::print_error(error.line(), false);
    return static_cast<int>(error.code());
  }
}
