#include "io/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

#include "base/error.h"

namespace megadict {

namespace {

constexpr size_t kMostValues = 1 << 22;  // of one pickle; a dictionary's has some hundred
constexpr size_t kMostDims = 32;

struct StorageType {
  std::string_view name;
  DType dtype;
};
constexpr StorageType kStorageTypes[] = {
    {"torch FloatStorage", DType::f32},     {"torch HalfStorage", DType::f16},
    {"torch BFloat16Storage", DType::bf16}, {"torch DoubleStorage", DType::f64},
    {"torch IntStorage", DType::i32},       {"torch LongStorage", DType::i64},
    {"torch ByteStorage", DType::u8}};

// What may be named beside storages, and does nothing but hold values.
constexpr std::string_view kRebuildTensor = "torch._utils _rebuild_tensor_v2";
constexpr std::string_view kRebuildParameter = "torch._utils _rebuild_parameter";
constexpr std::string_view kOrderedDict = "collections OrderedDict";

using Kind = PickleValue::Kind;

class Parser {
 public:
  Parser(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  Pickle parse() {
    while (!stopped_) step();
    if (stack_.size() != 1) refuse("it ends with more than one value");
    out_.root = stack_.back();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& why, const std::string& hint = "") const {
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}' as a PyTorch file: its pickle at byte {}: {}", path_, at_,
                     why),
         hint);
  }

  // ---- bytes ----
  std::string_view take(size_t bytes) {
    if (bytes > text_.size() - at_) refuse("it ends early");
    const std::string_view taken = text_.substr(at_, bytes);
    at_ += bytes;
    return taken;
  }
  uint64_t number(size_t bytes) {
    const std::string_view taken = take(bytes);
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i)
      value |= static_cast<uint64_t>(static_cast<unsigned char>(taken[i])) << (8 * i);
    return value;
  }
  std::string line() {
    const size_t end = text_.find('\n', at_);
    if (end == std::string_view::npos || end - at_ > 200) refuse("a name that does not end");
    const std::string text(text_.substr(at_, end - at_));
    at_ = end + 1;
    return text;
  }

  // ---- values ----
  int64_t make(PickleValue value) {
    if (out_.values.size() >= kMostValues) refuse("too many values");
    out_.values.push_back(std::move(value));
    return static_cast<int64_t>(out_.values.size()) - 1;
  }
  PickleValue& value(int64_t index) { return out_.values[static_cast<size_t>(index)]; }
  void push(PickleValue made) { stack_.push_back(make(std::move(made))); }
  int64_t pop() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) refuse("nothing to take");
    const int64_t top = stack_.back();
    stack_.pop_back();
    return top;
  }
  int64_t top() {
    const int64_t index = pop();
    stack_.push_back(index);
    return index;
  }
  std::vector<int64_t> pop_to_mark() {
    if (marks_.empty()) refuse("no mark");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<int64_t> values(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return values;
  }
  void push_integer(int64_t integer) {
    PickleValue made;
    made.kind = Kind::integer;
    made.integer = integer;
    push(std::move(made));
  }
  void push_truth(bool truth) {
    PickleValue made;
    made.kind = Kind::truth;
    made.integer = truth ? 1 : 0;
    push(std::move(made));
  }
  void push_text(size_t bytes) {
    PickleValue made;
    made.kind = Kind::text;
    made.text = std::string(take(bytes));
    push(std::move(made));
  }
  void push_list(Kind kind, std::vector<int64_t> members) {
    PickleValue made;
    made.kind = kind;
    made.members = std::move(members);
    push(std::move(made));
  }
  void push_tuple(size_t count) {
    std::vector<int64_t> members(count);
    for (size_t i = count; i > 0; --i) members[i - 1] = pop();
    push_list(Kind::list, std::move(members));
  }
  void push_double() {
    uint64_t bits = 0;
    for (const char byte : take(8)) bits = (bits << 8) | static_cast<unsigned char>(byte);
    PickleValue made;
    made.kind = Kind::number;
    std::memcpy(&made.number, &bits, sizeof(bits));
    push(std::move(made));
  }
  void push_long() {
    const size_t bytes = number(1);
    if (bytes > 8) refuse("an integer of more than 64 bits");
    uint64_t integer = number(bytes);
    if (bytes > 0 && bytes < 8 && (integer >> (8 * bytes - 1)) != 0)
      integer |= ~uint64_t{0} << (8 * bytes);
    push_integer(static_cast<int64_t>(integer));
  }

  // ---- dictionaries and lists ----
  PickleValue& container(Kind kind, const char* what) {
    PickleValue& found = value(top());
    if (found.kind != kind) refuse(fmt::format("what is filled is no {}", what));
    return found;
  }
  void add_members(Kind kind, const char* what, const std::vector<int64_t>& members) {
    if (kind == Kind::dict && members.size() % 2 != 0) refuse("a key without a value");
    std::vector<int64_t>& to = container(kind, what).members;
    if (to.size() + members.size() > kMostValues) refuse("too many values");
    to.insert(to.end(), members.begin(), members.end());
  }

  // ---- the few Python objects that are known ----
  void push_global() {
    const std::string module = line();
    PickleValue made;
    made.kind = Kind::global;
    made.text = module + " " + line();
    const bool is_storage =
        std::any_of(std::begin(kStorageTypes), std::end(kStorageTypes),
                    [&](const StorageType& type) { return type.name == made.text; });
    if (!is_storage && made.text != kRebuildTensor && made.text != kRebuildParameter &&
        made.text != kOrderedDict)
      refuse(fmt::format("it names the Python object '{}'", made.text),
             "only tensors, numbers and texts are read: torch.save(model.state_dict(), ...)");
    push(std::move(made));
  }
  // ("storage", type, record, device, elements)
  void push_storage() {
    const int64_t given = pop();
    if (value(given).kind != Kind::list || value(given).members.size() != 5) refuse("no storage");
    const PickleValue tuple = value(given);
    const PickleValue &tag = value(tuple.members[0]), &type = value(tuple.members[1]);
    const PickleValue &record = value(tuple.members[2]), &count = value(tuple.members[4]);
    if (tag.text != "storage" || type.kind != Kind::global || record.kind != Kind::text ||
        count.kind != Kind::integer || count.integer < 0 || record.text.size() > kLongestPickleName)
      refuse("no storage");
    PickleValue made;
    made.kind = Kind::storage;
    made.text = record.text;
    made.integer = count.integer;
    for (const StorageType& known : kStorageTypes)
      if (known.name == type.text) made.dtype = known.dtype;
    if (type.text.find("Storage") == std::string::npos) refuse("no storage");
    push(std::move(made));
  }
  std::vector<int64_t> sizes(int64_t index) {
    const PickleValue& tuple = value(index);
    if (tuple.kind != Kind::list || tuple.members.size() > kMostDims) refuse("no shape");
    std::vector<int64_t> out;
    for (const int64_t member : tuple.members) {
      if (value(member).kind != Kind::integer || value(member).integer < 0)
        refuse("a size that is none");
      out.push_back(value(member).integer);
    }
    return out;
  }
  // (storage, offset, shape, strides, ...)
  void push_tensor(const std::vector<int64_t>& arguments) {
    if (arguments.size() < 4) refuse("no tensor");
    const PickleValue& storage = value(arguments[0]);
    const PickleValue& offset = value(arguments[1]);
    if (storage.kind != Kind::storage || offset.kind != Kind::integer || offset.integer < 0)
      refuse("no tensor");
    PickleValue made;
    made.kind = Kind::tensor;
    made.storage = arguments[0];
    made.offset = offset.integer;
    made.shape = sizes(arguments[2]);
    made.strides = sizes(arguments[3]);
    if (made.shape.size() != made.strides.size()) refuse("a tensor without strides");
    check_extent(made, storage.integer);
    push(std::move(made));
  }
  // Its last element lies in the storage, and it holds no more elements than that.
  void check_extent(const PickleValue& tensor, int64_t available) {
    int64_t elements = 1, last = tensor.offset;
    bool fits = true;
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      int64_t reach = 0;
      fits = fits && !__builtin_mul_overflow(elements, tensor.shape[i], &elements);
      fits = fits && !__builtin_mul_overflow(std::max<int64_t>(tensor.shape[i] - 1, 0),
                                             tensor.strides[i], &reach);
      fits = fits && !__builtin_add_overflow(last, reach, &last);
    }
    if (!fits || elements > available || (elements > 0 && last >= available))
      refuse(fmt::format("a tensor [{}] in a storage of {} elements", fmt::join(tensor.shape, ","),
                         available));
  }
  void reduce() {
    constexpr size_t kMostArguments = 8;
    const int64_t given = pop(), called = pop();
    if (value(called).kind != Kind::global || value(given).kind != Kind::list ||
        value(given).members.size() > kMostArguments)
      refuse("a call of nothing");
    const PickleValue arguments = value(given), function = value(called);
    if (function.text == kRebuildTensor) return push_tensor(arguments.members);
    if (function.text == kRebuildParameter && !arguments.members.empty() &&
        value(arguments.members[0]).kind == Kind::tensor)
      return stack_.push_back(arguments.members[0]);
    if (function.text == kOrderedDict && arguments.members.empty())
      return push_list(Kind::dict, {});
    refuse(fmt::format("a call of '{}' that is not known", function.text));
  }
  // An OrderedDict's attributes (state_dict's _metadata) are left out.
  void build() {
    pop();
    container(Kind::dict, "dictionary");
  }

  void remember(uint64_t key) {
    if (memo_.size() >= kMostValues) refuse("too many values");
    memo_[key] = top();
  }
  void recall(uint64_t key) {
    const auto found = memo_.find(key);
    if (found == memo_.end()) refuse("a value that was never made");
    stack_.push_back(found->second);
  }

  void step() {
    if (stack_.size() > kMostValues || marks_.size() > kMostValues) refuse("too many values");
    const char code = take(1)[0];
    switch (code) {
      case '\x80':
        if (number(1) > 5) refuse("a protocol above 5");
        return;
      case 'N':
        return push({});
      case '\x88':
      case '\x89':
        return push_truth(code == '\x88');
      case 'J':
        return push_integer(static_cast<int32_t>(number(4)));
      case 'K':
        return push_integer(static_cast<int64_t>(number(1)));
      case 'M':
        return push_integer(static_cast<int64_t>(number(2)));
      case '\x8a':
        return push_long();
      case 'G':
        return push_double();
      case 'X':
        return push_text(number(4));
      case '\x8c':
        return push_text(number(1));
      case '}':
        return push_list(Kind::dict, {});
      case ']':
      case ')':
        return push_list(Kind::list, {});
      case '(':
        return marks_.push_back(stack_.size());
      case 't':
        return push_list(Kind::list, pop_to_mark());
      case '\x85':
      case '\x86':
      case '\x87':
        return push_tuple(static_cast<size_t>(static_cast<unsigned char>(code)) - 0x84);
      case 'u':
        return add_members(Kind::dict, "dictionary", pop_to_mark());
      case 's': {
        const int64_t item = pop(), key = pop();
        return add_members(Kind::dict, "dictionary", {key, item});
      }
      case 'e':
        return add_members(Kind::list, "list", pop_to_mark());
      case 'a':
        return add_members(Kind::list, "list", {pop()});
      case 'q':
        return remember(number(1));
      case 'r':
        return remember(number(4));
      case 'h':
        return recall(number(1));
      case 'j':
        return recall(number(4));
      case 'c':
        return push_global();
      case 'Q':
        return push_storage();
      case 'R':
        return reduce();
      case 'b':
        return build();
      case '.':
        stopped_ = true;
        return;
      default:
        refuse(fmt::format("the operation {:#04x} is not read",
                           static_cast<unsigned>(static_cast<unsigned char>(code))),
               "only tensors, numbers and texts are read: torch.save(model.state_dict(), ...)");
    }
  }

  std::string_view text_;
  const std::string& path_;
  size_t at_ = 0;
  bool stopped_ = false;
  Pickle out_;
  std::vector<int64_t> stack_;
  std::vector<size_t> marks_;
  std::map<uint64_t, int64_t> memo_;
};

}  // namespace

Pickle parse_pickle(std::string_view text, const std::string& path) {
  return Parser(text, path).parse();
}

// ---- writing -----------------------------------------------------------------------------------

namespace {

void put(std::string& to, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to += static_cast<char>((value >> (8 * i)) & 0xFF);
}

}  // namespace

PickleWriter::PickleWriter() : text_("\x80\x02") {}

void PickleWriter::add_text(std::string_view text) {
  text_ += 'X';
  put(text_, text.size(), 4);
  text_ += text;
}

void PickleWriter::add_integer(int64_t value) {
  const bool small = value >= 0 && value <= std::numeric_limits<int32_t>::max();
  text_ += small ? "J" : "\x8a\x08";
  put(text_, static_cast<uint64_t>(value), small ? 4 : 8);
}

void PickleWriter::add_tuple(const std::vector<int64_t>& values) {
  text_ += '(';
  for (int64_t value : values) add_integer(value);
  text_ += 't';
}

void PickleWriter::add_global(std::string_view module, std::string_view name) {
  text_ += fmt::format("c{}\n{}\n", module, name);
}

void PickleWriter::add_tensor(const std::vector<int64_t>& shape, DType dtype,
                              const std::string& record) {
  const auto* type = std::find_if(std::begin(kStorageTypes), std::end(kStorageTypes),
                                  [&](const StorageType& one) { return one.dtype == dtype; });
  if (type == std::end(kStorageTypes))
    fail(ExitCode::error, fmt::format("a PyTorch file cannot hold {}", name_of(dtype)));
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i > 1; --i)
    strides[i - 2] = strides[i - 1] * std::max<int64_t>(shape[i - 1], 1);
  int64_t elements = 1;
  for (int64_t size : shape) elements *= size;
  add_global("torch._utils", "_rebuild_tensor_v2");
  text_ += "((";
  add_text("storage");
  add_global("torch", type->name.substr(type->name.find(' ') + 1));
  add_text(record);
  add_text("cpu");
  add_integer(elements);
  text_ += "tQ";
  add_integer(0);
  add_tuple(shape);
  add_tuple(strides);
  text_ += "\x89";
  add_global("collections", "OrderedDict");
  text_ += ")RtR";
}

std::string PickleWriter::finish() {
  text_ += '.';
  return std::move(text_);
}

}  // namespace megadict
