// Gemma Scope's archives: params.npz, always jumprelu, b_dec is not subtracted
// from the input (F4).
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "base/error.h"
#include "io/file.h"
#include "io/npz.h"
#include "model/foreign_files.h"

namespace megadict {
namespace {

constexpr const char* kFile = "/params.npz";
constexpr Held kHeld[] = {{"relu", "jumprelu", false},
                          {"batchtopk", "jumprelu", false},
                          {"jumprelu", "jumprelu", false},
                          {"gated", "jumprelu", false},
                          {"prolu", "jumprelu", false}};

// `path` is the file, or its folder.
std::string weights_path(const std::string& path) {
  return path.ends_with(".npz") ? path : path + kFile;
}

void write(const PlainDictionary& folded, const ExportNote&, const std::string& folder) {
  const at::Tensor w_enc_dn = folded.w_enc_nd.t().contiguous();
  write_npz(weights_path(folder),
            {tensor_to_write("W_enc", w_enc_dn), tensor_to_write("W_dec", folded.w_dec_nd),
             tensor_to_write("b_enc", folded.b_enc_n), tensor_to_write("b_dec", folded.b_dec_d),
             tensor_to_write("threshold", folded.threshold_n)});
}

bool recognises(const std::string& path) {
  return file_exists(path + kFile) || (path.ends_with(".npz") && file_exists(path));
}

PlainDictionary read(const std::string& path) {
  const ForeignTensors file = open_tensors(weights_path(path));
  expect_tensors(file, {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"});
  const std::vector<int64_t> shape = file.at("W_enc").shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1)
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': 'W_enc' is [{}]", file.path, fmt::join(shape, ",")));
  const int64_t d = shape[0], n = shape[1];
  PlainDictionary plain =
      make_foreign(read_tensor(file, "W_enc", {d, n}).t().contiguous(),
                   read_tensor(file, "W_dec", {n, d}), read_tensor(file, "b_dec", {d}));
  plain.activation = "jumprelu";
  plain.b_enc_n = read_tensor(file, "b_enc", {n});
  plain.threshold_n = read_tensor(file, "threshold", {n});
  plain.subtracts_b_dec = false;
  return plain;
}

}  // namespace

const Format kGemmaNpzFormat = {
    "gemma_npz",
    "Gemma Scope: params.npz; jumprelu; relu, batchtopk, gated and prolu as jumprelu",
    kHeld,
    /*unit_rows=*/true,
    /*unit_only=*/false,
    kNoLeastThreshold,
    write,
    recognises,
    read};

}  // namespace megadict
