#include "io/hdf5_internal.h"

#include <bit>
#include <cstring>

namespace megadict::hdf5 {

static_assert(std::endian::native == std::endian::little,
              "Megadict runs on little-endian machines");

namespace {

std::recursive_mutex& library_lock() {
  static auto* lock = new std::recursive_mutex;  // never destroyed: used by static destructors
  return *lock;
}

herr_t take_reason(unsigned position, const H5E_error2_t* error, void* to) {
  auto& reason = *static_cast<std::string*>(to);
  const std::string text = error->desc ? error->desc : "";
  if (position == 0) reason = text;
  // "file write failed: time = ..., errno = 28, error message = 'No space left on device', ..."
  const std::string mark = "error message = '";
  const size_t at = text.find(mark);
  if (at != std::string::npos) {
    const size_t begin = at + mark.size();
    reason = text.substr(begin, text.find('\'', begin) - begin);
  }
  return 0;
}

}  // namespace

Call::Call() : lock_(library_lock()) {
  // No clean-up by the library at exit: our files close themselves, and after a failed write (a
  // full disk) it would try once more to flush what it could not, and crash.
  static const bool left_alone = H5dont_atexit() >= 0;
  static_cast<void>(left_alone);
  thread_local const bool silenced = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  static_cast<void>(silenced);
}

std::string last_reason() {
  std::string reason;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_reason, &reason);
  return reason.empty() ? "unknown HDF5 error" : reason;
}

void Id::reset() {
  if (id_ < 0) return;
  const Call call;
  close_(std::exchange(id_, -1));
}

namespace {

Id half_type() {
  Id type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
  // sign bit 15, exponent bits 10-14, mantissa bits 0-9; fields before size, or it is refused
  H5Tset_fields(type.get(), 15, 10, 5, 0, 10);
  H5Tset_size(type.get(), 2);
  H5Tset_ebias(type.get(), 15);
  return type;
}

bool is_float_with(hid_t type, size_t size, size_t exponent_bits, size_t mantissa_bits) {
  size_t sign, exponent, exponent_size, mantissa, mantissa_size;
  return H5Tget_size(type) == size &&
         H5Tget_fields(type, &sign, &exponent, &exponent_size, &mantissa, &mantissa_size) >= 0 &&
         exponent_size == exponent_bits && mantissa_size == mantissa_bits;
}

}  // namespace

Id type_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return half_type();
    case DType::f32:
      return Id(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
    case DType::f64:
      return Id(H5Tcopy(H5T_IEEE_F64LE), H5Tclose);
    case DType::i32:
      return Id(H5Tcopy(H5T_STD_I32LE), H5Tclose);
    case DType::i64:
      return Id(H5Tcopy(H5T_STD_I64LE), H5Tclose);
    case DType::u8:
      return Id(H5Tcopy(H5T_STD_U8LE), H5Tclose);
    case DType::bf16:
    case DType::u16:
      return Id(H5Tcopy(H5T_STD_U16LE), H5Tclose);
    case DType::u32:
      return Id(H5Tcopy(H5T_STD_U32LE), H5Tclose);
    case DType::u64:
      return Id(H5Tcopy(H5T_STD_U64LE), H5Tclose);
  }
  return Id();
}

std::optional<DType> dtype_of(hid_t type) {
  const H5T_class_t kind = H5Tget_class(type);
  if (kind == H5T_FLOAT) {
    if (is_float_with(type, 2, 5, 10)) return DType::f16;
    if (is_float_with(type, 4, 8, 23)) return DType::f32;
    if (is_float_with(type, 8, 11, 52)) return DType::f64;
  }
  if (kind == H5T_INTEGER) {
    const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
    switch (H5Tget_size(type)) {
      case 1:
        return is_signed ? std::nullopt : std::optional(DType::u8);
      case 2:
        return is_signed ? std::nullopt : std::optional(DType::u16);
      case 4:
        return is_signed ? DType::i32 : DType::u32;
      case 8:
        return is_signed ? DType::i64 : DType::u64;
      default:
        break;
    }
  }
  return std::nullopt;
}

}  // namespace megadict::hdf5
