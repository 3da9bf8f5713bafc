// What a call refuses with: its exit code and line, for tests of messages.
#pragma once

#include <string>

#include "base/error.h"

namespace megadict {

struct Refusal {
  int code = 0;  // 0 = the call did not throw
  std::string line;
  bool agreed = false;
};

template <class Call>
Refusal refusal_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return {static_cast<int>(error.code()), error.line(), error.agreed()};
  }
  return {};
}

}  // namespace megadict
