// The field table: every field of Config once. It drives the command line, INI files, --help, the
// saved config.json and the resume check. tests/golden/fields.txt freezes the names.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "app/config.h"
#include "app/field.h"

namespace megadict {

// The table for one Config; the records point into it.
std::vector<Field> fields_of(Config& config);

std::vector<std::string> isa_choices();  // of kernels.isa

// visitor(const Field&, T& member) with T one of the types of FieldTarget.
template <class Visitor>
void for_each_field(Config& config, Visitor&& visitor) {
  for (const Field& field : fields_of(config))
    std::visit([&](auto* member) { visitor(field, *member); }, field.target);
}

}  // namespace megadict
