#include "app/field.h"

#include <fmt/format.h>

#include <charconv>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <type_traits>

#include "base/error.h"

namespace megadict {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Shortest text that reads back as the same number; whole numbers without a fraction, large powers
// of ten as 1e9.
std::string number_text(double value) {
  const double exponent = std::log10(value);
  if (value >= 1e6 && exponent == std::floor(exponent)) return fmt::format("1e{:.0f}", exponent);
  if (value == std::floor(value) && std::fabs(value) < 1e15) return fmt::format("{:.0f}", value);
  return fmt::format("{}", value);
}

std::string range_text(const Allowed& allowed) {
  const bool low = allowed.low > -kInfinity, high = allowed.high < kInfinity;
  const std::string from = number_text(allowed.low), to = number_text(allowed.high);
  if (low && high)
    return fmt::format("{}{} to {}{}", allowed.low_excluded ? "above " : "", from,
                       allowed.high_excluded ? "below " : "", to);
  if (low) return allowed.low_excluded ? "more than " + from : from + " or more";
  if (high) return allowed.high_excluded ? "less than " + to : to + " or less";
  return "";
}

bool in_range(const Allowed& allowed, long double value) {
  const bool low_ok = allowed.low_excluded ? value > allowed.low : value >= allowed.low;
  const bool high_ok = allowed.high_excluded ? value < allowed.high : value <= allowed.high;
  return low_ok && high_ok;
}

std::string quoted(std::string_view text, size_t longest) {
  std::string line;
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    line += byte < 0x20 || byte == 0x7F ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
  }
  return fmt::format("'{}{}'", line, text.size() > longest ? "..." : "");
}

[[noreturn]] void refuse(const Field& field, std::string_view text, const std::string& where,
                         const std::string& why, const std::string& hint = "") {
  fail_agreed(ExitCode::usage,
              fmt::format("{} = {} ({}): {}; allowed: {}", field.name, start_in_quotes(text), where,
                          why, allowed_text(field)),
              hint);
}

enum class Parsed { ok, malformed, overflow };

template <class Number>
Parsed parse_plain(std::string_view text, Number& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::result_out_of_range && stop == end) return Parsed::overflow;
  return error == std::errc() && stop == end ? Parsed::ok : Parsed::malformed;
}

template <class Integer>
Parsed parse_integer(std::string_view text, Integer& value) {
  const Parsed plain = parse_plain(text, value);
  if (plain != Parsed::malformed) return plain;
  // 4e8 or 2.5e6: an exponent makes it a count a person wrote; "1.0" stays a mistake.
  if (text.find_first_of("eE") == std::string_view::npos) return Parsed::malformed;
  double wide = 0;
  const Parsed scientific = parse_plain(text, wide);
  if (scientific != Parsed::ok) return scientific;
  if (!std::isfinite(wide) || wide != std::floor(wide)) return Parsed::malformed;
  constexpr double kExact = 9007199254740992.0;  // 2^53: beyond it a double skips integers
  if (std::fabs(wide) > kExact) return Parsed::overflow;
  if (wide < static_cast<double>(std::numeric_limits<Integer>::min())) return Parsed::overflow;
  if (wide > static_cast<double>(std::numeric_limits<Integer>::max())) return Parsed::overflow;
  value = static_cast<Integer>(wide);
  return Parsed::ok;
}

void parse_into(const Field& field, std::string_view text, const std::string& where,
                std::string& value) {
  value = text;
  if (text.find('\0') != std::string_view::npos) refuse(field, text, where, "holds a NUL byte");
}

void parse_into(const Field& field, std::string_view text, const std::string& where, bool& value) {
  if (text != "true" && text != "false") refuse(field, text, where, "neither true nor false");
  value = text == "true";
}

void parse_into(const Field& field, std::string_view text, const std::string& where,
                double& value) {
  double parsed = 0;
  const Parsed result = parse_plain(text, parsed);
  if (result == Parsed::overflow) refuse(field, text, where, "does not fit a double");
  if (result != Parsed::ok) refuse(field, text, where, "not a number");
  if (!std::isfinite(parsed)) refuse(field, text, where, "not a finite number");
  value = parsed;
}

template <class Integer>
requires std::is_integral_v<Integer>
void parse_into(const Field& field, std::string_view text, const std::string& where,
                Integer& value) {
  // Read widely first, so that -1 for an unsigned field is out of range and not malformed.
  Integer parsed = 0;
  const Parsed result = parse_integer(text, parsed);
  if (result == Parsed::overflow) refuse(field, text, where, "too large a number");
  if (result == Parsed::ok) {
    value = parsed;
    return;
  }
  int64_t negative = 0;
  if (parse_integer(text, negative) == Parsed::ok) refuse(field, text, where, "out of range");
  refuse(field, text, where, "not an integer");
}

// The word whose number the field holds; "" where there is none.
std::string word_of(const Field& field) {
  for (const auto& [word, number] : field.allowed.words)
    if (*std::get<double*>(field.target) == number) return word;
  return "";
}

void check_range(const Field& field, const std::string& where) {
  const Allowed& allowed = field.allowed;
  const auto check = [&](const auto& value) {
    using T = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<T, std::string>) {
      if (allowed.choices.empty()) return;
      for (const std::string& choice : allowed.choices)
        if (choice == value) return;
      const std::string near = nearest_name(value, allowed.choices);
      refuse(field, value, where, "not a known value",
             near.empty() ? "" : fmt::format("did you mean '{}'?", near));
    } else if constexpr (!std::is_same_v<T, bool>) {
      if (!in_range(allowed, static_cast<long double>(value)))
        refuse(field, value_text(field), where, "out of range");
    }
  };
  std::visit([&](const auto* value) { check(*value); }, field.target);
}

}  // namespace

Allowed anything() {
  return {};
}

Allowed at_least(double low) {
  return {.low = low};
}

Allowed above(double low) {
  return {.low = low, .low_excluded = true};
}

Allowed between(double low, double high) {
  return {.low = low, .high = high};
}

Allowed from_to_below(double low, double high) {
  return {.low = low, .high = high, .high_excluded = true};
}

Allowed one_of(std::vector<std::string> choices) {
  return {.choices = std::move(choices)};
}

Allowed or_word(Allowed allowed, std::vector<std::pair<std::string, double>> words) {
  allowed.words = std::move(words);
  return allowed;
}

void set_field(const Field& field, std::string_view text, const std::string& where) {
  if (text.empty()) refuse(field, text, where, "no value");
  for (const auto& [word, number] : field.allowed.words)
    if (word == text) {
      *std::get<double*>(field.target) = number;
      return;
    }
  std::visit([&](auto* value) { parse_into(field, text, where, *value); }, field.target);
  check_range(field, where);
}

void check_field(const Field& field, const std::string& where) {
  if (word_of(field).empty()) check_range(field, where);
}

std::string value_text(const Field& field) {
  if (const std::string word = word_of(field); !word.empty()) return word;
  const auto text = [](const auto& value) -> std::string {
    using T = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<T, std::string>)
      return value;
    else if constexpr (std::is_same_v<T, double>)
      return number_text(value);
    else
      return fmt::format("{}", value);
  };
  return std::visit([&](const auto* value) { return text(*value); }, field.target);
}

std::string allowed_text(const Field& field) {
  if (std::holds_alternative<bool*>(field.target)) return "true or false";
  if (std::holds_alternative<std::string*>(field.target)) {
    if (field.allowed.choices.empty()) return "any text that is not empty";
    return fmt::format("{}", fmt::join(field.allowed.choices, ", "));
  }
  std::string text = std::holds_alternative<double*>(field.target) ? "a number" : "an integer";
  const std::string range = range_text(field.allowed);
  if (!range.empty()) text += ", " + range;
  for (const auto& [word, number] : field.allowed.words) text += ", or " + word;
  return text;
}

std::string short_allowed_text(const Field& field) {
  if (std::holds_alternative<bool*>(field.target)) return "true, false";
  if (!field.allowed.choices.empty())
    return fmt::format("{}", fmt::join(field.allowed.choices, ", "));
  std::string text;
  for (const auto& [word, number] : field.allowed.words) text += word + ", ";
  return text + range_text(field.allowed);
}

std::string in_quotes(std::string_view text) {
  return quoted(text, PATH_MAX);
}

std::string start_in_quotes(std::string_view text) {
  return quoted(text, 80);
}

std::vector<std::string> names_of(const std::vector<Field>& fields) {
  std::vector<std::string> names;
  for (const Field& field : fields) names.push_back(field.name);
  return names;
}

}  // namespace megadict
