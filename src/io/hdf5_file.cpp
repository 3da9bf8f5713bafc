#include "io/hdf5_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "io/file.h"
#include "io/hdf5_internal.h"

namespace megadict {

using hdf5::Call;
using hdf5::Id;

int64_t Hdf5Dataset::row_elements() const {
  return shape.empty()
             ? 1
             : std::accumulate(shape.begin() + 1, shape.end(), int64_t{1}, std::multiplies<>());
}

void Hdf5File::State::fail_read(const std::string& what) const {
  fail(ExitCode::bad_data,
       fmt::format("cannot read '{}': {}: {}", path, what, hdf5::last_reason()));
}

void Hdf5File::State::check_write(bool ok) const {
  if (ok) return;
  const std::string why = hdf5::last_reason();
  fail(ExitCode::error, fmt::format("cannot write '{}': {}", path, why),
       why.starts_with("No space") ? "free some space or choose another folder" : "");
}

hid_t Hdf5File::State::dataset(const std::string& name) {
  const auto found = datasets.find(name);
  if (found != datasets.end()) return found->second.get();
  Id id(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!id.ok()) fail_read(fmt::format("no dataset '{}'", name));
  return datasets.emplace(name, std::move(id)).first->second.get();
}

namespace {

// Locks of the file system stay off for reading: NFS and Lustre often refuse them.
Id access_without_locks() {
  Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access.get(), false, true);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  return access;
}

std::vector<hsize_t> dims_of(const std::vector<int64_t>& shape) {
  return {shape.begin(), shape.end()};
}

std::vector<int64_t> shape_of(hid_t space) {
  std::vector<hsize_t> dims(static_cast<size_t>(std::max(0, H5Sget_simple_extent_ndims(space))));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return {dims.begin(), dims.end()};
}

// A file space with `rows` of the first dimension selected.
Id select_rows(hid_t dataset, Range rows) {
  Id space(H5Dget_space(dataset), H5Sclose);
  std::vector<hsize_t> count = dims_of(shape_of(space.get())), start(count.size(), 0);
  if (count.empty()) return space;
  start[0] = static_cast<hsize_t>(rows.begin);
  count[0] = static_cast<hsize_t>(rows.size());
  H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr);
  return space;
}

void check_count(hid_t memory, ConstBufferView buffer, const std::string& dataset) {
  if (H5Sget_simple_extent_npoints(memory) != buffer.count)
    fail(ExitCode::error, fmt::format("a buffer of {} elements for {} of '{}'", buffer.count,
                                      H5Sget_simple_extent_npoints(memory), dataset));
}

// The memory side of the same rows. Of the same rank, because the library copies element by element
// between spaces of different ranks.
Id memory_space(hid_t dataset, Range rows) {
  const Id space(H5Dget_space(dataset), H5Sclose);
  std::vector<hsize_t> dims = dims_of(shape_of(space.get()));
  if (!dims.empty()) dims[0] = static_cast<hsize_t>(rows.size());
  return Id(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose);
}

std::vector<hsize_t> chunk_start(hid_t dataset, int64_t first_row) {
  const Id space(H5Dget_space(dataset), H5Sclose);
  std::vector<hsize_t> offset(shape_of(space.get()).size(), 0);
  offset.at(0) = static_cast<hsize_t>(first_row);
  return offset;
}

void describe_layout(hid_t dataset, Hdf5Dataset& facts) {
  const Id plist(H5Dget_create_plist(dataset), H5Pclose);
  facts.elsewhere = H5Pget_external_count(plist.get()) > 0;
  if (H5Pget_layout(plist.get()) == H5D_CHUNKED) {
    std::vector<hsize_t> chunk(facts.shape.size());
    H5Pget_chunk(plist.get(), static_cast<int>(chunk.size()), chunk.data());
    facts.chunk.assign(chunk.begin(), chunk.end());
  }
  for (int i = 0; i < H5Pget_nfilters(plist.get()); ++i) {
    unsigned flags = 0;
    size_t values = 0;
    const H5Z_filter_t filter = H5Pget_filter2(plist.get(), static_cast<unsigned>(i), &flags,
                                               &values, nullptr, 0, nullptr, nullptr);
    (filter == H5Z_FILTER_FLETCHER32 ? facts.fletcher32 : facts.other_filters) = true;
  }
}

herr_t take_dataset_name(hid_t, const char* name, const H5O_info_t* info, void* to) {
  if (info->type == H5O_TYPE_DATASET)
    static_cast<std::vector<std::string>*>(to)->emplace_back(name);
  return 0;
}

}  // namespace

Hdf5File::Hdf5File(std::unique_ptr<State> state) : state_(std::move(state)) {}
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;
Hdf5File& Hdf5File::operator=(Hdf5File&&) noexcept = default;
Hdf5File::~Hdf5File() = default;

const std::string& Hdf5File::path() const {
  return state_->path;
}

Hdf5File Hdf5File::open(const std::string& path) {
  // The system's own words for a file that is missing, unreadable or no file.
  const RandomAccessFile readable(path);
  const Call call;
  auto state = std::make_unique<State>();
  state->path = path;
  const Id access = access_without_locks();
  state->file = Id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!state->file.ok()) {
    const std::string why = hdf5::last_reason();
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': not a whole HDF5 file ({})", path, why));
  }
  return Hdf5File(std::move(state));
}

Hdf5File Hdf5File::create(const std::string& path, const std::string& shown_path) {
  const Call call;
  auto state = std::make_unique<State>();
  state->path = shown_path.empty() ? path : shown_path;
  const Id access = access_without_locks();
  state->file = Id(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), H5Fclose);
  state->check_write(state->file.ok());
  return Hdf5File(std::move(state));
}

void Hdf5File::close() {
  if (!state_->file.ok()) return;
  const Call call;
  state_->check_write(H5Fflush(state_->file.get(), H5F_SCOPE_GLOBAL) >= 0);
  state_->datasets.clear();
  state_->check_write(H5Fclose(state_->file.release()) >= 0);
}

bool Hdf5File::has(const std::string& dataset) const {
  const Call call;
  if (state_->datasets.contains(dataset)) return true;
  const Id id(H5Dopen2(state_->file.get(), dataset.c_str(), H5P_DEFAULT), H5Dclose);
  return id.ok();
}

std::vector<std::string> Hdf5File::dataset_names() const {
  const Call call;
  std::vector<std::string> names;
  if (H5Ovisit2(state_->file.get(), H5_INDEX_NAME, H5_ITER_INC, take_dataset_name, &names,
                H5O_INFO_BASIC) < 0)
    state_->fail_read("cannot list its datasets");
  std::sort(names.begin(), names.end());
  return names;
}

Hdf5Dataset Hdf5File::describe(const std::string& dataset) const {
  const Call call;
  const hid_t id = state_->dataset(dataset);
  const Id type(H5Dget_type(id), H5Tclose), space(H5Dget_space(id), H5Sclose);
  const std::optional<DType> dtype = hdf5::dtype_of(type.get());
  if (!dtype)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': the element type of '{}' is not a "
                                         "float of 16, 32 or 64 bits or a plain integer",
                                         path(), dataset));
  Hdf5Dataset facts;
  facts.shape = shape_of(space.get());
  facts.little_endian = H5Tget_size(type.get()) == 1 || H5Tget_order(type.get()) == H5T_ORDER_LE;
  facts.dtype = *dtype;
  if (*dtype == DType::u16 && text(dataset, "dtype") == "bfloat16") facts.dtype = DType::bf16;
  describe_layout(id, facts);
  H5L_info_t link = {};
  if (H5Lget_info(state_->file.get(), dataset.c_str(), &link, H5P_DEFAULT) >= 0)
    facts.elsewhere = facts.elsewhere || link.type == H5L_TYPE_EXTERNAL;
  if (facts.elsewhere)
    fail(ExitCode::bad_data,
         fmt::format("cannot read '{}': '{}' lies in another file", path(), dataset));
  return facts;
}

void Hdf5File::create_dataset(const std::string& dataset, const std::vector<int64_t>& shape,
                              DType dtype, int64_t chunk_rows, bool fletcher32) {
  {
    const Call call;
    std::vector<hsize_t> dims = dims_of(shape), limits = dims;
    const Id plist(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_obj_track_times(plist.get(), false);  // equal content, equal bytes
    if (chunk_rows > 0) {
      limits.at(0) = H5S_UNLIMITED;
      std::vector<hsize_t> chunk = dims;
      chunk.at(0) = static_cast<hsize_t>(chunk_rows);
      state_->check_write(H5Pset_chunk(plist.get(), static_cast<int>(chunk.size()), chunk.data()) >=
                          0);
      H5Pset_fill_time(plist.get(), H5D_FILL_TIME_NEVER);
      if (fletcher32) H5Pset_fletcher32(plist.get());
    }
    const Id space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), limits.data()),
                   H5Sclose);
    const Id type = hdf5::type_of(dtype);
    Id id(H5Dcreate2(state_->file.get(), dataset.c_str(), type.get(), space.get(), H5P_DEFAULT,
                     plist.get(), H5P_DEFAULT),
          H5Dclose);
    state_->check_write(id.ok());
    state_->datasets[dataset] = std::move(id);
  }
  if (dtype == DType::bf16) set(dataset, "dtype", "bfloat16");
}

void Hdf5File::extend(const std::string& dataset, int64_t rows) {
  const Call call;
  const hid_t id = state_->dataset(dataset);
  const Id space(H5Dget_space(id), H5Sclose);
  std::vector<hsize_t> dims = dims_of(shape_of(space.get()));
  dims.at(0) = static_cast<hsize_t>(rows);
  state_->check_write(H5Dset_extent(id, dims.data()) >= 0);
}

void Hdf5File::write_rows(const std::string& dataset, Range rows, ConstBufferView buffer) {
  if (rows.empty()) return;
  const Call call;
  const hid_t id = state_->dataset(dataset);
  const Id type = hdf5::type_of(buffer.dtype), memory = memory_space(id, rows);
  check_count(memory.get(), buffer, dataset);
  const Id space = select_rows(id, rows);
  state_->check_write(
      H5Dwrite(id, type.get(), memory.get(), space.get(), H5P_DEFAULT, buffer.data) >= 0);
}

void Hdf5File::read_rows(const std::string& dataset, Range rows, BufferView buffer) const {
  if (rows.empty()) return;
  const Call call;
  const hid_t id = state_->dataset(dataset);
  const Id type = hdf5::type_of(buffer.dtype), memory = memory_space(id, rows);
  check_count(memory.get(), buffer, dataset);
  const Id space = select_rows(id, rows);
  if (H5Dread(id, type.get(), memory.get(), space.get(), H5P_DEFAULT, buffer.data) < 0)
    state_->fail_read(fmt::format("'{}' rows {} to {}", dataset, rows.begin, rows.end));
}

void Hdf5File::read_flattened(const std::string& dataset, Range rows, BufferView buffer) const {
  const Call call;
  const hid_t id = state_->dataset(dataset);
  const Id type = hdf5::type_of(buffer.dtype), space(H5Dget_space(id), H5Sclose);
  const std::vector<hsize_t> dims = dims_of(shape_of(space.get()));
  if (dims.size() <= 2) return read_rows(dataset, rows, buffer);
  const auto inner = static_cast<int64_t>(dims[dims.size() - 2]);
  const auto width = static_cast<int64_t>(dims.back());
  auto* to = static_cast<std::byte*>(buffer.data);
  for (int64_t row = rows.begin; row < rows.end;) {  // one piece per index before the last two
    const int64_t count = std::min(rows.end, (row / inner + 1) * inner) - row;
    std::vector<hsize_t> start(dims.size(), 0), size(dims.size(), 1);
    int64_t outer = row / inner;
    for (size_t d = dims.size() - 2; d-- > 0; outer /= static_cast<int64_t>(dims[d]))
      start[d] = static_cast<hsize_t>(outer) % dims[d];
    start[dims.size() - 2] = static_cast<hsize_t>(row % inner);
    size[dims.size() - 2] = static_cast<hsize_t>(count);
    size.back() = dims.back();
    H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr);
    const Id memory(H5Screate_simple(static_cast<int>(size.size()), size.data(), nullptr),
                    H5Sclose);
    if (H5Dread(id, type.get(), memory.get(), space.get(), H5P_DEFAULT, to) < 0)
      state_->fail_read(fmt::format("'{}' rows {} to {}", dataset, row, row + count));
    to += static_cast<size_t>(count * width) * size_of(buffer.dtype);
    row += count;
  }
}

void Hdf5File::append_rows(const std::string& dataset, ConstBufferView buffer) {
  const Hdf5Dataset facts = describe(dataset);
  const int64_t added = facts.row_elements() == 0 ? 0 : buffer.count / facts.row_elements();
  extend(dataset, facts.rows() + added);
  write_rows(dataset, {facts.rows(), facts.rows() + added}, buffer);
}

void Hdf5File::write_chunk(const std::string& dataset, int64_t first_row,
                           std::span<const std::byte> bytes) {
  const Call call;
  const hid_t id = state_->dataset(dataset);
  const std::vector<hsize_t> offset = chunk_start(id, first_row);
  state_->check_write(
      H5Dwrite_chunk(id, H5P_DEFAULT, 0, offset.data(), bytes.size(), bytes.data()) >= 0);
}

void Hdf5File::read_chunk(const std::string& dataset, int64_t first_row,
                          std::span<std::byte> bytes) const {
  const Call call;
  const hid_t id = state_->dataset(dataset);
  const std::vector<hsize_t> offset = chunk_start(id, first_row);
  hsize_t stored = 0;
  const bool known = H5Dget_chunk_storage_size(id, offset.data(), &stored) >= 0;
  if (!known || stored != bytes.size())
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': the chunk of '{}' at row {} has {} "
                                         "bytes instead of {}",
                                         path(), dataset, first_row, stored, bytes.size()));
  uint32_t filters_off = 0;
  if (H5Dread_chunk(id, H5P_DEFAULT, offset.data(), &filters_off, bytes.data()) < 0)
    state_->fail_read(fmt::format("chunk of '{}' at row {}", dataset, first_row));
  if (filters_off != 0)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': the chunk of '{}' at row {} was "
                                         "written without its checksum",
                                         path(), dataset, first_row));
}

int64_t Hdf5File::chunk_offset(const std::string& dataset, int64_t first_row) const {
  const Call call;
  const hid_t id = state_->dataset(dataset);
  const std::vector<hsize_t> start = chunk_start(id, first_row);
  haddr_t address = HADDR_UNDEF;
  hsize_t bytes = 0;
  unsigned filters_off = 0;
  const herr_t status =
      H5Dget_chunk_info_by_coord(id, start.data(), &filters_off, &address, &bytes);
  if (status < 0 || address == HADDR_UNDEF)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': the chunk of '{}' at row {} is missing",
                                         path(), dataset, first_row));
  return static_cast<int64_t>(address);
}

}  // namespace megadict
