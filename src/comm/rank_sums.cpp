#include "comm/rank_sums.h"

#include <algorithm>

namespace megadict {

namespace {

// Sum of `parts` rows of `count` half-precision values, row after row in fp32.
void sum_rows(const uint16_t* rows, int parts, int64_t count, DType dtype, uint16_t* sum) {
  const auto widen = dtype == DType::bf16 ? bfloat16_to_float : half_to_float;
  const auto narrow = dtype == DType::bf16 ? float_to_bfloat16 : float_to_half;
  for (int64_t i = 0; i < count; ++i) {
    float value = widen(rows[i]);
    for (int part = 1; part < parts; ++part) value += widen(rows[part * count + i]);
    sum[i] = narrow(value);
  }
}

template <class Number>
void sum_numbers(const void* rows, int parts, int64_t count, void* sum) {
  const auto* from = static_cast<const Number*>(rows);
  auto* to = static_cast<Number*>(sum);
  std::copy(from, from + count, to);
  for (int part = 1; part < parts; ++part)
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Number>(to[i] + from[part * count + i]);
}

}  // namespace

void sum_in_rank_order(const ConstBufferView& parts, int ranks, const BufferView& sum) {
  switch (sum.dtype) {
    case DType::f32:
      return sum_numbers<float>(parts.data, ranks, sum.count, sum.data);
    case DType::f64:
      return sum_numbers<double>(parts.data, ranks, sum.count, sum.data);
    case DType::i32:
    case DType::u32:  // as unsigned: sums wrap
      return sum_numbers<uint32_t>(parts.data, ranks, sum.count, sum.data);
    case DType::i64:
    case DType::u64:
      return sum_numbers<uint64_t>(parts.data, ranks, sum.count, sum.data);
    case DType::u8:
      return sum_numbers<uint8_t>(parts.data, ranks, sum.count, sum.data);
    case DType::u16:
      return sum_numbers<uint16_t>(parts.data, ranks, sum.count, sum.data);
    case DType::f16:
    case DType::bf16:
      return sum_rows(static_cast<const uint16_t*>(parts.data), ranks, sum.count, sum.dtype,
                      static_cast<uint16_t*>(sum.data));
  }
}

}  // namespace megadict
