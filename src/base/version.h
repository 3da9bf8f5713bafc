// The version in CMakeLists.txt; written into every file so that a reader knows who wrote it.
#pragma once

#include <string_view>

namespace megadict {

std::string_view version();  // "0.1.0"

}  // namespace megadict
