// config.json of a run: every field with its value and source, and what a resume makes of it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "app/settings.h"

namespace megadict {

// {"data.path": {"value": "acts", "source": "command line"}, ...} in the order of the table.
nlohmann::ordered_json config_json(const Settings& settings);

struct Difference {
  std::string name;
  std::string before, after;  // as a user would type them
  OnResume on_resume = OnResume::free;
};

// Before compare_for_resume: what the saved run resolved ("0 = ...") and nobody set anew keeps
// its old value, so that a resumed run does not resolve it differently. Mesh, threads and other
// free fields are resolved afresh. Exit 3 (agreed) where `saved` is not such a file; `path` names
// it.
void adopt_saved_resolutions(const nlohmann::ordered_json& saved, const std::string& path,
                             Settings& now);

// Every field whose value differs, in the order of the table. A field the saved run did not know
// counts as its default. The caller refuses `fixed`, prints `notice`.
std::vector<Difference> compare_for_resume(const nlohmann::ordered_json& saved,
                                           const std::string& path, const Settings& now);

// One line with all `fixed` differences, exit 2 (agreed), where there are any; `hint` included.
void refuse_fixed(const std::vector<Difference>& differences, const std::string& path);

}  // namespace megadict
