// The real data that lies beside the project and is not part of it.
#pragma once

#include <cstdlib>
#include <string>

namespace megadict {

// Path of a file there; a test that does not find it is skipped with this name.
inline std::string shared_data(const std::string& relative) {
  const char* given = std::getenv("MEGADICT_SHARED_DATA");
  return std::string(given != nullptr ? given : MEGADICT_SOURCE_DIR "/../shared/data") + "/" +
         relative;
}

}  // namespace megadict
