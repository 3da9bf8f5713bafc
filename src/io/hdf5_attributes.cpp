// Attributes of Hdf5File: one text, integer or real number each.
#include <vector>

#include "io/hdf5_internal.h"

namespace megadict {

using hdf5::Call;
using hdf5::Id;

namespace {

// The attribute if it is there and holds one element; an Id that is not ok otherwise.
Id open_attribute(hid_t file, const std::string& object, const std::string& name) {
  if (H5Aexists_by_name(file, object.c_str(), name.c_str(), H5P_DEFAULT) <= 0) return Id();
  Id attribute(H5Aopen_by_name(file, object.c_str(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT),
               H5Aclose);
  if (!attribute.ok()) return Id();
  const Id space(H5Aget_space(attribute.get()), H5Sclose);
  return H5Sget_simple_extent_npoints(space.get()) == 1 ? std::move(attribute) : Id();
}

// Texts come as fixed or variable length strings, the latter as h5py writes them.
std::optional<std::string> read_text(hid_t attribute, hid_t type) {
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    if (H5Aread(attribute, type, &text) < 0 || text == nullptr) return std::nullopt;
    std::string copy(text);
    H5free_memory(text);
    return copy;
  }
  std::vector<char> text(H5Tget_size(type) + 1, '\0');
  if (H5Aread(attribute, type, text.data()) < 0) return std::nullopt;
  return std::string(text.data());
}

// `memory` is a native type of T.
template <class T>
std::optional<T> read_number(hid_t file, const std::string& object, const std::string& name,
                             hid_t memory, H5T_class_t wanted) {
  const Id attribute = open_attribute(file, object, name);
  if (!attribute.ok()) return std::nullopt;
  const Id type(H5Aget_type(attribute.get()), H5Tclose);
  T value = 0;
  if (H5Tget_class(type.get()) != wanted || H5Aread(attribute.get(), memory, &value) < 0)
    return std::nullopt;
  return value;
}

bool write_attribute(hid_t file, const std::string& object, const std::string& name, hid_t type,
                     const void* value) {
  if (H5Aexists_by_name(file, object.c_str(), name.c_str(), H5P_DEFAULT) > 0)
    H5Adelete_by_name(file, object.c_str(), name.c_str(), H5P_DEFAULT);
  const Id space(H5Screate(H5S_SCALAR), H5Sclose);
  const Id attribute(H5Acreate_by_name(file, object.c_str(), name.c_str(), type, space.get(),
                                       H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                     H5Aclose);
  return attribute.ok() && H5Awrite(attribute.get(), type, value) >= 0;
}

}  // namespace

std::optional<std::string> Hdf5File::text(const std::string& object,
                                          const std::string& name) const {
  const Call call;
  const Id attribute = open_attribute(state_->file.get(), object, name);
  if (!attribute.ok()) return std::nullopt;
  const Id type(H5Aget_type(attribute.get()), H5Tclose);
  if (H5Tget_class(type.get()) != H5T_STRING) return std::nullopt;
  return read_text(attribute.get(), type.get());
}

std::optional<int64_t> Hdf5File::integer(const std::string& object, const std::string& name) const {
  const Call call;
  return read_number<int64_t>(state_->file.get(), object, name, H5T_NATIVE_INT64, H5T_INTEGER);
}

std::optional<double> Hdf5File::real(const std::string& object, const std::string& name) const {
  const Call call;
  return read_number<double>(state_->file.get(), object, name, H5T_NATIVE_DOUBLE, H5T_FLOAT);
}

void Hdf5File::set(const std::string& object, const std::string& name, const std::string& value) {
  const Call call;
  const Id type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), H5T_VARIABLE);  // which h5py gives back as a text, not as bytes
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  const char* text = value.c_str();
  state_->check_write(write_attribute(state_->file.get(), object, name, type.get(), &text));
}

void Hdf5File::set(const std::string& object, const std::string& name, int64_t value) {
  const Call call;
  state_->check_write(write_attribute(state_->file.get(), object, name, H5T_NATIVE_INT64, &value));
}

void Hdf5File::set(const std::string& object, const std::string& name, double value) {
  const Call call;
  state_->check_write(write_attribute(state_->file.get(), object, name, H5T_NATIVE_DOUBLE, &value));
}

}  // namespace megadict
