#include "base/version.h"

namespace megadict {

std::string_view version() {
  return MEGADICT_VERSION;
}

}  // namespace megadict
