#include "io/npz.h"

#include <fmt/format.h>

#include <set>

#include "base/error.h"

namespace megadict {

namespace {

constexpr std::string_view kEnding = ".npy";

bool is_float(DType dtype) {
  return dtype == DType::f16 || dtype == DType::f32 || dtype == DType::f64;
}

}  // namespace

NpzFile NpzFile::open(const std::string& path) {
  NpzFile opened{ZipFile::open(path)};
  std::set<std::string> names;
  for (const ZipEntry& entry : opened.zip_.entries()) {
    const std::string label = path + ":" + entry.name;
    if (!entry.name.ends_with(kEnding))
      fail(ExitCode::bad_data, fmt::format("cannot read '{}' as .npz: it is no .npy file", label));
    const std::string name = entry.name.substr(0, entry.name.size() - kEnding.size());
    if (!names.insert(name).second)
      fail(ExitCode::bad_data, fmt::format("cannot read '{}' as .npz: it appears twice", label));
    opened.arrays_.push_back({name, read_npy_header(opened.zip_.file(), entry.bytes, label)});
  }
  return opened;
}

void NpzFile::read_as_float(const NpzArray& array, float* to) const {
  const DType dtype = array.header.dtype;
  if (!is_float(dtype))
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': '{}' is {}, not floats", path(),
                                         array.name, name_of(dtype)));
  const int64_t elements = array.header.elements();
  const size_t bytes = static_cast<size_t>(elements) * size_of(dtype);
  if (dtype == DType::f32) return zip_.file().read(array.header.data_begin, to, bytes);
  std::vector<std::byte> raw(bytes);
  zip_.file().read(array.header.data_begin, raw.data(), bytes);
  convert_to_float(raw.data(), dtype, elements, to);
}

void write_npz(const std::string& path, const std::vector<TensorToWrite>& arrays) {
  ZipWriter zip(path);
  for (const TensorToWrite& array : arrays) {
    const std::string header = npy_header_text(array.data.dtype, array.shape);
    zip.add(array.name + std::string(kEnding),
            {ConstBufferView{header.data(), static_cast<int64_t>(header.size()), DType::u8},
             array.data});
  }
  zip.commit();
}

}  // namespace megadict
