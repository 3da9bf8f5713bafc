#include "io/npy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <numeric>
#include <string_view>

#include "base/error.h"

namespace megadict {

namespace {

constexpr int64_t kMaxHeaderBytes = 1 << 20;

struct Descr {
  std::string_view text;
  DType dtype;
};

constexpr Descr kDescrs[] = {
    {"<f4", DType::f32}, {"<f2", DType::f16}, {"<f8", DType::f64},
    {"<i4", DType::i32}, {"<i8", DType::i64}, {"|u1", DType::u8},
    {"<u2", DType::u16}, {"<u4", DType::u32}, {"<u8", DType::u64},
};

// Reads the header, a Python dictionary literal with the keys descr, fortran_order and shape.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& path) : rest_(text), path_(path) {}

  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;

  void parse() {
    expect('{');
    bool seen_descr = false, seen_order = false, seen_shape = false;
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr" && !seen_descr) {
        if (peek() == '[') refuse("it holds records, not one number type");
        descr = quoted();
        seen_descr = true;
      } else if (key == "fortran_order" && !seen_order) {
        fortran_order = boolean();
        seen_order = true;
      } else if (key == "shape" && !seen_shape) {
        shape = tuple();
        seen_shape = true;
      } else {
        refuse(fmt::format("unexpected header key '{}'", key));
      }
      if (!accept(',') && peek() != '}') refuse("the header is not a dictionary");
    }
    if (!seen_descr || !seen_order || !seen_shape)
      refuse("the header lacks descr, fortran_order or shape");
  }

  [[noreturn]] void refuse(const std::string& why) const {
    fail(ExitCode::bad_data, fmt::format("cannot read '{}' as .npy: {}", path_, why));
  }

 private:
  char peek() {
    while (!rest_.empty() && std::isspace(static_cast<unsigned char>(rest_[0])))
      rest_.remove_prefix(1);
    return rest_.empty() ? '\0' : rest_[0];
  }
  bool accept(char wanted) {
    if (peek() != wanted) return false;
    rest_.remove_prefix(1);
    return true;
  }
  void expect(char wanted) {
    if (!accept(wanted)) refuse(fmt::format("the header lacks a '{}'", wanted));
  }
  std::string quoted() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') refuse("the header lacks a quoted text");
    const size_t end = rest_.find(quote, 1);
    if (end == std::string_view::npos) refuse("the header ends inside a text");
    std::string text(rest_.substr(1, end - 1));
    rest_.remove_prefix(end + 1);
    return text;
  }
  bool boolean() {
    peek();
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "True" : "False";
      if (!rest_.starts_with(word)) continue;
      rest_.remove_prefix(word.size());
      return value;
    }
    refuse("fortran_order is neither True nor False");
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      int64_t value = 0;
      if (!std::isdigit(static_cast<unsigned char>(peek()))) refuse("the shape is no tuple");
      while (!rest_.empty() && std::isdigit(static_cast<unsigned char>(rest_[0]))) {
        if (value > (int64_t{1} << 58)) refuse("the shape is too large");
        value = value * 10 + (rest_[0] - '0');
        rest_.remove_prefix(1);
      }
      accept('L');  // written by Python 2
      sizes.push_back(value);
      if (sizes.size() > 32) refuse("the shape is too long");
      if (!accept(',') && peek() != ')') refuse("the shape is no tuple");
    }
    return sizes;
  }

  std::string_view rest_;
  const std::string& path_;
};

DType dtype_of_descr(const HeaderParser& header) {
  for (const Descr& known : kDescrs)
    if (known.text == header.descr) return known.dtype;
  if (header.descr.starts_with(">")) header.refuse("its numbers are big-endian");
  if (header.descr.find('O') != std::string::npos) header.refuse("it holds Python objects");
  header.refuse(
      fmt::format("unsupported element type '{}' (float32, float16 and float64 are "
                  "read)",
                  header.descr));
}

}  // namespace

int64_t NpyHeader::elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

NpyHeader read_npy_header(const RandomAccessFile& file, Range bytes, const std::string& name) {
  HeaderParser probe("", name);
  unsigned char start[12] = {};
  const int64_t size = bytes.size();
  if (size < 10) probe.refuse(fmt::format("only {} bytes", size));
  file.read(bytes.begin, start, static_cast<size_t>(std::min<int64_t>(size, 12)));
  if (std::memcmp(start, "\x93NUMPY", 6) != 0) probe.refuse("it does not begin with \\x93NUMPY");
  const int version = start[6];
  if (version < 1 || version > 3) probe.refuse(fmt::format("unknown version {}", version));
  const int64_t prefix = version == 1 ? 10 : 12;
  int64_t length = start[8] | (start[9] << 8);
  if (version > 1) length |= (int64_t{start[10]} << 16) | (int64_t{start[11]} << 24);
  if (length > std::min(kMaxHeaderBytes, size - prefix))
    probe.refuse(fmt::format("a header of {} bytes in a file of {}", length, size));
  std::string text(static_cast<size_t>(length), '\0');
  file.read(bytes.begin + prefix, text.data(), text.size());

  HeaderParser header(text, name);
  header.parse();
  if (header.fortran_order)
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}' as .npy: its elements are in Fortran order", name),
         "save numpy.ascontiguousarray(x)");
  const NpyHeader out{dtype_of_descr(header), header.shape, bytes.begin + prefix + length};
  int64_t data_bytes = static_cast<int64_t>(size_of(out.dtype));
  for (int64_t dim : header.shape)
    if (__builtin_mul_overflow(data_bytes, dim, &data_bytes))
      header.refuse("the shape is too large");
  if (data_bytes > bytes.end - out.data_begin)
    header.refuse(fmt::format("its shape asks for {} bytes of data, the file holds {}: truncated",
                              data_bytes, bytes.end - out.data_begin));
  return out;
}

std::string npy_header_text(DType dtype, const std::vector<int64_t>& shape) {
  constexpr size_t kPrefix = 10, kAlignment = 64;
  const auto* known = std::find_if(std::begin(kDescrs), std::end(kDescrs),
                                   [&](const Descr& one) { return one.dtype == dtype; });
  if (known == std::end(kDescrs))
    fail(ExitCode::error, fmt::format("an .npy file cannot hold {}", name_of(dtype)));
  std::string text = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}",
                                 known->text, fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  text.append((kAlignment - (kPrefix + text.size() + 1) % kAlignment) % kAlignment, ' ');
  text += '\n';
  std::string start("\x93NUMPY\x01\x00", 8);
  start += static_cast<char>(text.size() & 0xFF);
  start += static_cast<char>(text.size() >> 8);
  return start + text;
}

NpyFile NpyFile::open(const std::string& path) {
  NpyFile opened{RandomAccessFile(path)};
  opened.header_ = read_npy_header(opened.file_, {0, opened.file_.size()}, path);
  return opened;
}

int64_t NpyFile::row_elements() const {
  return header_.shape.size() < 2 ? 1 : header_.shape.back();
}

int64_t NpyFile::rows() const {
  if (header_.shape.size() < 2) return header_.shape.empty() ? 1 : header_.shape[0];
  return std::accumulate(header_.shape.begin(), header_.shape.end() - 1, int64_t{1},
                         std::multiplies<>());
}

void NpyFile::read_rows(Range rows, BufferView to) const {
  const int64_t row_bytes = row_elements() * static_cast<int64_t>(size_of(dtype()));
  if (rows.begin < 0 || rows.end > this->rows() ||
      static_cast<int64_t>(to.bytes()) != rows.size() * row_bytes)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': rows {} to {} of {}", path(),
                                         rows.begin, rows.end, this->rows()));
  file_.read(header_.data_begin + rows.begin * row_bytes, to.data, to.bytes());
}

}  // namespace megadict
