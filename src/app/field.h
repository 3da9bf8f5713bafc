// One thing a user can set: its name, where its value lives, unit, help and what is allowed. The
// same record serves the configuration (fields.h) and the flags of single commands (options.h).
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace megadict {

// What happens when a run is resumed with another value.
enum class OnResume {
  fixed,   // refused
  notice,  // allowed, printed as a notice
  free     // allowed
};

// Numbers: from low to high, either end may be excluded, or one of the `words`, each of which
// stands for a number outside. Text: one of `choices` where there are any, else whatever is not
// empty.
struct Allowed {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_excluded = false;
  bool high_excluded = false;
  std::vector<std::string> choices = {};
  std::vector<std::pair<std::string, double>> words = {};
};

Allowed anything();
Allowed at_least(double low);
Allowed above(double low);
Allowed between(double low, double high);
Allowed from_to_below(double low, double high);  // low included, high excluded
Allowed one_of(std::vector<std::string> choices);
Allowed or_word(Allowed allowed, std::vector<std::pair<std::string, double>> words);

using FieldTarget = std::variant<std::string*, bool*, int*, int64_t*, uint64_t*, double*>;

struct Field {
  std::string name;    // "model.k"; in a command's own flags without a section: "json"
  FieldTarget target;  // not owned
  std::string unit;    // "rows", "s", ...; "" = none
  std::string help;
  Allowed allowed = {};
  OnResume on_resume = OnResume::free;
};

// Parses `text` and stores it. `where` says who asked ("command line", "configs/a.ini:12"). Exit 2
// (agreed) naming field, value, place and what is allowed. Integers may be written as 4e8, if that
// is a whole number; NaN and infinities are no numbers here.
void set_field(const Field& field, std::string_view text, const std::string& where);

// Refuses a present value that is out of range, as set_field does.
void check_field(const Field& field, const std::string& where);

std::string value_text(const Field& field);    // as a user would type it; "" for empty text
std::string allowed_text(const Field& field);  // "an integer, 1 or more"
std::string short_allowed_text(
    const Field& field);  // for help: "1 or more"; "" where all is allowed

// `text` between quotes on one line: control characters escaped. A path stays whole.
std::string in_quotes(std::string_view text);
// The same of what may be anything, a file of another kind included: long text is cut.
std::string start_in_quotes(std::string_view text);

std::vector<std::string> names_of(const std::vector<Field>& fields);

}  // namespace megadict
