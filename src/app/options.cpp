#include "app/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <set>

#include "app/ini.h"
#include "base/error.h"

namespace megadict {

namespace po = boost::program_options;

namespace {

constexpr const char* kCommandLine = "command line";

const Field* find_field(const std::vector<Field>& fields, const std::string& name) {
  for (const Field& field : fields)
    if (field.name == name) return &field;
  return nullptr;
}

std::string help_hint(const OptionSet& set) {
  return fmt::format("megadict {} --help", set.command);
}

std::vector<std::string> known_names(const OptionSet& set) {
  std::vector<std::string> names = names_of(set.fields);
  if (set.config_file) names.emplace_back("config");
  names.emplace_back("help");
  names.emplace_back("quiet");  // main takes it out
  return names;
}

// The nearest known name; `k` alone stands for `model.k` where only one field ends that way.
std::string suggestion(const OptionSet& set, const std::string& name) {
  std::vector<std::string> same_end;
  for (const std::string& known : known_names(set))
    if (known.size() > name.size() && known.ends_with("." + name)) same_end.push_back(known);
  if (same_end.size() == 1) return same_end.front();
  return nearest_name(name, known_names(set));
}

[[noreturn]] void refuse_unknown(const OptionSet& set, const std::string& what,
                                 const std::string& name, const std::string& prefix) {
  const std::string near = suggestion(set, name);
  fail_agreed(ExitCode::usage, what,
              near.empty() ? help_hint(set) : fmt::format("did you mean {}{}?", prefix, near));
}

// Boost takes the line apart; which names exist and what they may hold is decided here, so that
// every refusal reads alike.
std::vector<po::option> tokens(const OptionSet& set, const std::vector<std::string>& args) {
  po::options_description known;
  for (const std::string& name : known_names(set))
    known.add_options()(name.c_str(), po::value<std::string>());
  namespace style = po::command_line_style;
  try {
    return po::command_line_parser(args)
        .options(known)
        .allow_unregistered()
        .style(style::allow_long | style::long_allow_adjacent | style::long_allow_next)
        .run()
        .options;
  } catch (const po::error_with_option_name& error) {
    const std::string name = error.get_option_name();
    fail_agreed(ExitCode::usage, fmt::format("{} needs a value", in_quotes(name)), help_hint(set));
  }
}

struct Given {
  std::vector<std::pair<const Field*, std::string>> flags;
  std::vector<std::string> positional;
  std::string config;
};

std::string flag_value(const OptionSet& set, const po::option& token) {
  const std::string value = token.value.empty() ? "" : token.value.front();
  if (value.empty() || value.starts_with("--"))
    fail_agreed(ExitCode::usage, fmt::format("--{} needs a value", token.string_key),
                help_hint(set));
  return value;
}

Given sort_tokens(const OptionSet& set, const std::vector<std::string>& args) {
  Given given;
  std::set<std::string> seen;
  for (const po::option& token : tokens(set, args)) {
    const std::string& name = token.string_key;
    if (token.position_key >= 0 || name.empty()) {
      given.positional.push_back(token.value.empty() ? "--" : token.value.front());
      continue;
    }
    const Field* field = find_field(set.fields, name);
    const bool is_config = set.config_file && name == "config";
    if (field == nullptr && !is_config)
      refuse_unknown(set, fmt::format("unknown flag {}", start_in_quotes("--" + name)), name, "--");
    const std::string value = flag_value(set, token);
    if (!seen.insert(name).second)
      fail_agreed(ExitCode::usage, fmt::format("--{} is given twice", name), help_hint(set));
    if (is_config)
      given.config = value;
    else
      given.flags.emplace_back(field, value);
  }
  return given;
}

void read_file(const OptionSet& set, const std::string& path, Sources& sources) {
  for (const IniEntry& entry : read_ini(path)) {
    const std::string where = fmt::format("{}:{}", path, entry.line);
    const Field* field = find_field(set.fields, entry.name);
    const auto& others = set.elsewhere;
    if (field == nullptr && std::find(others.begin(), others.end(), entry.name) != others.end())
      continue;
    if (field == nullptr)
      refuse_unknown(set, fmt::format("{}: unknown name {}", where, start_in_quotes(entry.name)),
                     entry.name, "");
    if (sources.count(entry.name) != 0) {
      // The command line has won; the file's value must be sound all the same.
      const std::string kept = value_text(*field);
      set_field(*field, entry.value, where);
      set_field(*field, kept, kCommandLine);
      continue;
    }
    set_field(*field, entry.value, where);
    sources[entry.name] = where;
  }
}

void take_positional(const OptionSet& set, const std::vector<std::string>& values,
                     Sources& sources) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (i >= set.positional.size())
      fail_agreed(ExitCode::usage,
                  fmt::format("unexpected argument {}", start_in_quotes(values[i])),
                  help_hint(set));
    set_field(set.positional[i], values[i], kCommandLine);
    sources[set.positional[i].name] = kCommandLine;
  }
}

void check_required(const OptionSet& set, const Sources& sources) {
  for (const std::string& name : set.required) {
    if (sources.count(name) != 0) continue;
    const bool flag = find_field(set.fields, name) != nullptr;
    fail_agreed(ExitCode::usage,
                fmt::format("{}{} is needed and was not given", flag ? "--" : "", name),
                help_hint(set));
  }
}

// "  --data.tokens              0          training length; 0 = one pass [rows; 0 to 1e15]"
std::string field_line(const Field& field, const std::string& shown_name) {
  const std::string value = value_text(field), allowed = short_allowed_text(field);
  const std::string unit = field.unit + (field.unit.empty() || allowed.empty() ? "" : "; ");
  return fmt::format("  {:<26} {:<10} {}{}\n", shown_name, value.empty() ? "-" : value, field.help,
                     unit.empty() && allowed.empty() ? "" : " [" + unit + allowed + "]");
}

}  // namespace

Sources read_options(const OptionSet& set, const std::vector<std::string>& args) {
  const Given given = sort_tokens(set, args);
  Sources sources;
  for (const auto& [field, value] : given.flags) {
    set_field(*field, value, kCommandLine);
    sources[field->name] = kCommandLine;
  }
  take_positional(set, given.positional, sources);
  if (!given.config.empty()) read_file(set, given.config, sources);
  check_required(set, sources);
  return sources;
}

bool wants_help(const std::vector<std::string>& args) {
  return std::any_of(args.begin(), args.end(),
                     [](const std::string& arg) { return arg == "--help" || arg == "-h"; });
}

std::string help_text(const OptionSet& set) {
  std::string usage = fmt::format("usage: megadict {}", set.command);
  for (const Field& field : set.positional) usage += " " + field.name;
  if (set.config_file) usage += " [--config FILE]";
  if (!set.fields.empty()) usage += " [--name value ...]";
  std::string text = fmt::format("{}\n\n{}\n", usage, set.summary);
  if (!set.required.empty()) text += fmt::format("Needed: {}\n", fmt::join(set.required, ", "));
  if (set.config_file)
    text += "FILE is an INI file: [section], then name = value; the command line wins over it.\n";
  text += fmt::format("\n  {:<26} {:<10} {}\n", "name", "default", "meaning [unit; allowed]");
  for (const Field& field : set.positional) text += field_line(field, field.name);
  std::string section;
  for (const Field& field : set.fields) {
    const std::string here = field.name.substr(0, field.name.find('.'));
    const bool dotted = field.name.find('.') != std::string::npos;
    if (dotted && here != section) text += "\n";
    section = dotted ? here : "";
    text += field_line(field, "--" + field.name);
  }
  text.pop_back();
  return text;
}

}  // namespace megadict
