// Vectors of any element type for the communicator tests, filled with small integers that every
// type and every sum over a test's ranks holds exactly.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "base/buffer_view.h"
#include "support/mpi_main.h"

namespace megadict {

inline constexpr DType kAllDTypes[] = {DType::f16, DType::bf16, DType::f32, DType::f64, DType::i32,
                                       DType::i64, DType::u8,   DType::u16, DType::u32, DType::u64};

class Values {
 public:
  Values(DType dtype, int64_t count)
      : dtype_(dtype), bytes_(static_cast<size_t>(count) * size_of(dtype)), count_(count) {}

  BufferView view() { return {bytes_.data(), count_, dtype_, test_device()}; }
  ConstBufferView view() const { return {bytes_.data(), count_, dtype_, test_device()}; }
  BufferView part(int64_t begin, int64_t count) {
    return {bytes_.data() + static_cast<size_t>(begin) * size_of(dtype_), count, dtype_,
            test_device()};
  }
  int64_t count() const { return count_; }

  void set(int64_t i, double value) {
    switch (dtype_) {
      case DType::f16:
        return put(i, float_to_half(static_cast<float>(value)));
      case DType::bf16:
        return put(i, float_to_bfloat16(static_cast<float>(value)));
      case DType::f32:
        return put(i, static_cast<float>(value));
      case DType::f64:
        return put(i, value);
      case DType::i32:
        return put(i, static_cast<int32_t>(value));
      case DType::i64:
        return put(i, static_cast<int64_t>(value));
      case DType::u8:
        return put(i, static_cast<uint8_t>(value));
      case DType::u16:
        return put(i, static_cast<uint16_t>(value));
      case DType::u32:
        return put(i, static_cast<uint32_t>(value));
      case DType::u64:
        return put(i, static_cast<uint64_t>(value));
    }
  }

  double get(int64_t i) const {
    switch (dtype_) {
      case DType::f16:
        return half_to_float(at<uint16_t>(i));
      case DType::bf16:
        return bfloat16_to_float(at<uint16_t>(i));
      case DType::f32:
        return at<float>(i);
      case DType::f64:
        return at<double>(i);
      case DType::i32:
        return at<int32_t>(i);
      case DType::i64:
        return static_cast<double>(at<int64_t>(i));
      case DType::u8:
        return at<uint8_t>(i);
      case DType::u16:
        return at<uint16_t>(i);
      case DType::u32:
        return at<uint32_t>(i);
      case DType::u64:
        return static_cast<double>(at<uint64_t>(i));
    }
    return 0;
  }

 private:
  template <class T>
  void put(int64_t i, T value) {
    std::memcpy(bytes_.data() + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
  }
  template <class T>
  T at(int64_t i) const {
    T value;
    std::memcpy(&value, bytes_.data() + static_cast<size_t>(i) * sizeof(T), sizeof(T));
    return value;
  }

  DType dtype_;
  std::vector<char> bytes_;
  int64_t count_;
};

// Element i of rank r's vector: 1 to 5.
inline double sample_value(int rank, int64_t i) {
  return static_cast<double>((rank * 7 + i * 3) % 5 + 1);
}

}  // namespace megadict
