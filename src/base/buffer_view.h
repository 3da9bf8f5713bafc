// Element types and typed raw memory, the currency of io and comm (which know no tensors).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace megadict {

enum class DType { f16, bf16, f32, f64, i32, i64, u8, u16, u32, u64 };

size_t size_of(DType dtype);
std::string_view name_of(DType dtype);  // "float16", "bfloat16", "float32", ...

enum class Device { cpu, cuda };

// Memory somebody else owns. `count` is in elements.
struct ConstBufferView {
  const void* data = nullptr;
  int64_t count = 0;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  size_t bytes() const { return static_cast<size_t>(count) * size_of(dtype); }
};

struct BufferView {
  void* data = nullptr;
  int64_t count = 0;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  size_t bytes() const { return static_cast<size_t>(count) * size_of(dtype); }
  operator ConstBufferView() const { return {data, count, dtype, device}; }
};

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::i32;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::i64;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::u8;
}
template <>
constexpr DType dtype_of<uint16_t>() {
  return DType::u16;
}
template <>
constexpr DType dtype_of<uint32_t>() {
  return DType::u32;
}
template <>
constexpr DType dtype_of<uint64_t>() {
  return DType::u64;
}

template <class T>
BufferView view_of(T* data, int64_t count) {
  return {data, count, dtype_of<T>(), Device::cpu};
}
template <class T>
ConstBufferView view_of(const T* data, int64_t count) {
  return {data, count, dtype_of<T>(), Device::cpu};
}

// IEEE half and bfloat16 <-> float, round to nearest even; NaN stays NaN.
float half_to_float(uint16_t half);
uint16_t float_to_half(float value);
float bfloat16_to_float(uint16_t value);
uint16_t float_to_bfloat16(float value);
// `count` values of dtype f16, bf16, f32 or f64 at `from` to float at `to`.
void convert_to_float(const void* from, DType dtype, int64_t count, float* to);

}  // namespace megadict
