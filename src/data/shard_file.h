// One activation shard, opened for reading. The file:
//
//   activations [rows, d]   float32, float16, or uint16 with the attribute dtype = "bfloat16";
//                           chunks of whole rows, 0.25-1 MiB, filter Fletcher-32 and no other
//   norm [rows] float32     optional: Euclidean norm of each row
//   tokens, position, document [rows] uint32   optional
//   chunk_checksum [chunks] uint32             optional: the chunks' checksums once more, so that
//                           a data set is fingerprinted without touching every chunk, and a chunk
//                           lost to zeros or to another chunk is seen
//   attributes of "/"       megadict_version, model, hook, layer, tokenizer, d_in, dtype, rows
//
// Any HDF5 program can write it: h5py with chunks=(r, d), fletcher32=True. Chunks are read raw and
// their checksum is verified here on every read (io/fletcher32.h), past the library's filters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/range.h"
#include "data/shard_index.h"
#include "io/file.h"
#include "io/hdf5_file.h"

namespace megadict {

class ShardFile {
 public:
  // Reads and checks the header. Exit 3 with the file's name for anything that is not as above.
  static ShardFile open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const DatasetFacts& facts() const { return facts_; }
  int64_t rows() const { return rows_; }
  int64_t chunk_rows() const { return chunk_rows_; }
  int64_t chunks() const { return ceil_div(rows_, chunk_rows_); }
  Range chunk(int64_t index) const;  // rows of this file
  int64_t row_bytes() const { return facts_.width * static_cast<int64_t>(size_of(facts_.dtype)); }
  bool has(const std::string& column) const { return file_.has(column); }

  // Bytes read_chunk() needs: whole chunks (the last one padded) and the checksum.
  size_t stored_bytes() const;
  // The rows of a chunk one after the other, verified. Exit 3 naming file, chunk and rows.
  void read_chunk(int64_t index, std::byte* to) const;
  // Asks the system to begin reading the chunk. A hint: nothing is refused here.
  void announce_chunk(int64_t index);
  // One of the optional columns: norm (float32), tokens, position, document (uint32).
  void read_column(const std::string& column, Range rows, BufferView to) const;
  // The stored checksum of every chunk.
  std::vector<uint32_t> chunk_checksums() const;

 private:
  explicit ShardFile(Hdf5File file) : file_(std::move(file)) {}
  Hdf5File file_;
  DatasetFacts facts_;
  int64_t rows_ = 0, chunk_rows_ = 0;
  std::vector<uint32_t> table_;  // chunk_checksum; empty where the file has none
  // Where some chunks lie; those between two neighbours are taken to lie evenly. Looking every
  // chunk up would take minutes for a large file: the library walks over all of them each time.
  // More than a certain number of places: too uneven a file to announce anything of it.
  struct Place {
    int64_t chunk = 0, offset = 0;
  };
  struct Map {
    RandomAccessFile file;
    std::vector<Place> places;
  };
  Place place_of(int64_t index) const;
  void add_places(const Place& first, const Place& last, std::vector<Place>& places) const;
  std::optional<Map> map_;  // once announce_chunk() has been called
};

// Of all chunk_checksums(): ShardInfo::checksum.
uint64_t checksum_of(const ShardFile& file);

// Room that ShardPool::read() needs for any chunk of the data set.
size_t largest_chunk_bytes(const ShardIndex& index);

// The shards of a data set, opened when needed; only the most recently used stay open. For one
// thread.
class ShardPool {
 public:
  explicit ShardPool(const ShardIndex& index) : index_(index) {}
  // Exit 3 where the file is no longer what the index saw.
  ShardFile& shard(int32_t number);
  // The verified rows of a chunk of the index, in the data set's element type, and what is stored
  // behind them: `to` has room for largest_chunk_bytes().
  void read(const Chunk& chunk, std::byte* to);
  // Asks the system to begin reading a chunk. What fails here fails again in read().
  void announce(const Chunk& chunk);

 private:
  static constexpr size_t kMaxOpen = 32;
  struct Open {
    int32_t number;
    ShardFile file;
  };
  // The chunk's number in its file.
  int64_t number_of(const Chunk& chunk) const;
  const ShardIndex& index_;
  std::vector<Open> open_;  // most recent last
};

}  // namespace megadict
