// Where a command is to write, looked at before any work: a wrong path is the user's flag, exit 2.
// What goes wrong later, while something is written, stays exit 1 (file.h).
#pragma once

#include <string>

namespace megadict {

// The folder of `path` must be there and take files, and `path` must not be a folder, nor a file by
// which a run or a dictionary lives.
void refuse_output_file(const std::string& path);

// `path` is a folder that takes files, or can be made in the nearest one that is there.
void refuse_output_folder(const std::string& path);

}  // namespace megadict
