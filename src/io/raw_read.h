// How fast a file can be read at all, from the page cache and from the disk below it: the bounds
// that the loader is held against.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace megadict {

// Reads the whole file in order, in pieces of 1 MiB, and forgets it: seconds.
double read_in_order(const std::string& path);
// The same past the page cache (O_DIRECT), in pieces of 8 MiB; nothing where the file system has no
// such reads.
std::optional<double> read_past_cache(const std::string& path);

// Writes the file out and drops its pages from the cache. Some may stay: those that another process
// maps, or all of a file system without a disk.
void drop_from_cache(const std::string& path);
int64_t cached_bytes(const std::string& path);

}  // namespace megadict
