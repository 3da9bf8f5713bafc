// For tests/py/test_export.py.
//
//   export_fixture write FOLDER    random dictionaries: FOLDER/CASE/native.safetensors and
//                                  FOLDER/CASE/FORMAT.SCALE for every format that holds the case
//   export_fixture read FOLDER OUT OUT.safetensors = the dictionary in a foreign folder
//
// A native file: W_enc, W_dec, b_enc, b_dec, mean, and activation, k, threshold, scale as metadata.
#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "model/formats.h"
#include "model/tensor_views.h"
#include "support/random_dictionary.h"

namespace megadict {
namespace {

void write_native(const SavedDictionary& saved, const std::string& path) {
  const Dictionary& dictionary = saved.dictionary;
  at::Tensor mean = at::zeros({dictionary.d}, at::kFloat);
  if (!saved.normalization.mean.empty()) mean = at::tensor(saved.normalization.mean);
  std::vector<TensorToWrite> tensors;
  const auto add = [&](const char* name, const at::Tensor& tensor) {
    tensors.push_back({name, tensor.sizes().vec(), view_of(tensor)});
  };
  add("W_enc", dictionary.w_enc_ld);
  add("W_dec", dictionary.w_dec_ld);
  add("b_enc", dictionary.b_enc_l);
  add("b_dec", dictionary.b_dec_d);
  add("mean", mean);
  write_safetensors(path, tensors,
                    {{"activation", dictionary.config.activation},
                     {"k", fmt::format("{}", dictionary.config.k)},
                     {"threshold", fmt::format("{}", dictionary.threshold)},
                     {"scale", fmt::format("{}", saved.normalization.scale)},
                     {"hook", saved.hook},
                     {"layer", fmt::format("{}", saved.layer)}});
}

void write_cases(const std::string& folder) {
  for (const char* activation : {"topk", "relu", "batchtopk"})
    for (const char* decoder : {"linear", "tied"}) {
      const std::string at = fmt::format("{}/{}_{}", folder, activation, decoder);
      const SavedDictionary saved = test::random_dictionary(activation, decoder);
      make_folders(at);
      write_native(saved, at + "/native.safetensors");
      for (const Format& format : all_formats())
        for (const ExportScale scale : {ExportScale::unit, ExportScale::trained})
          if (format.problem(saved).empty())
            export_dictionary(saved, format, scale,
                              fmt::format("{}/{}.{}", at, format.name, name_of(scale)));
    }
}

int run(const std::vector<std::string>& words) {
  if (words.size() == 3 && words[1] == "write") {
    write_cases(words[2]);
  } else if (words.size() == 4 && words[1] == "read") {
    write_native(load_foreign(words[2]), words[3]);
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
