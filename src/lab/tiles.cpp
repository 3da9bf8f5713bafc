#include "lab/tiles.h"

#include "base/clones.h"

// Written once for float and double, inlined into functions that are compiled for each instruction
// set.
#define MEGADICT_BODY __attribute__((always_inline)) inline

namespace megadict {

namespace {

constexpr int kBlock = 4;  // outputs whose sums stay in registers together

// What a register holds: longer vectors would go through memory.
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(32), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int64_t kVector = 32 / sizeof(T);

template <class T>
MEGADICT_BODY Vector<T>& vector_at(T* at) {
  return *reinterpret_cast<Vector<T>*>(at);
}
template <class T>
MEGADICT_BODY const Vector<T>& vector_at(const T* at) {
  return *reinterpret_cast<const Vector<T>*>(at);
}

template <class T>
MEGADICT_BODY T sum_of(const Vector<T>& values) {
  T sum = 0;
  for (int64_t i = 0; i < kVector<T>; ++i) sum += values[i];
  return sum;
}

// W as it stands, or transposed: entry (out, in) lies at out * out_step + in * in_step.
template <class T>
struct Weights {
  const T* values;
  int64_t outs, ins, out_step, in_step;
};

template <class T, int kOuts>
MEGADICT_BODY void multiply_rows(const Weights<T>& w, int64_t first, const T* bias, const T* x,
                                 T* y) {
  constexpr int64_t kParts = kLane / kVector<T>;
  Vector<T> sums[kOuts][kParts] = {};
  if (bias)
    for (int o = 0; o < kOuts; ++o)
      for (Vector<T>& part : sums[o]) part += bias[first + o];
  const T* weight = w.values + first * w.out_step;
  for (int64_t i = 0; i < w.ins; ++i)
    for (int64_t p = 0; p < kParts; ++p) {
      const Vector<T> value = vector_at(x + i * kLane + p * kVector<T>);
      for (int o = 0; o < kOuts; ++o) sums[o][p] += weight[o * w.out_step + i * w.in_step] * value;
    }
  for (int o = 0; o < kOuts; ++o)
    for (int64_t p = 0; p < kParts; ++p)
      vector_at(y + (first + o) * kLane + p * kVector<T>) = sums[o][p];
}

template <class T>
MEGADICT_BODY void multiply_all(const Weights<T>& w, const T* bias, const Tiles<T>& x,
                                Tiles<T>& y) {
  for (int64_t t = 0; t < x.tiles(); ++t) {
    int64_t o = 0;
    for (; o + kBlock <= w.outs; o += kBlock)
      multiply_rows<T, kBlock>(w, o, bias, x.tile(t), y.tile(t));
    for (; o < w.outs; ++o) multiply_rows<T, 1>(w, o, bias, x.tile(t), y.tile(t));
  }
}

template <class T, int kOuts, int kIns>
MEGADICT_BODY void add_outer_block(const Tiles<T>& dy, const Tiles<T>& x, int64_t out, int64_t in,
                                   const WeightView<T>& dw) {
  Vector<T> sums[kOuts][kIns] = {};
  for (int64_t t = 0; t < x.tiles(); ++t) {
    const T* from_x = x.tile(t) + in * kLane;
    const T* from_y = dy.tile(t) + out * kLane;
    for (int64_t part = 0; part < kLane; part += kVector<T>) {
      Vector<T> value[kIns];
      for (int i = 0; i < kIns; ++i) value[i] = vector_at(from_x + i * kLane + part);
      for (int o = 0; o < kOuts; ++o) {
        const Vector<T> gradient = vector_at(from_y + o * kLane + part);
        for (int i = 0; i < kIns; ++i) sums[o][i] += gradient * value[i];
      }
    }
  }
  for (int o = 0; o < kOuts; ++o)
    for (int i = 0; i < kIns; ++i) dw.values[(out + o) * dw.ins + in + i] += sum_of<T>(sums[o][i]);
}

template <class T, int kOuts>
MEGADICT_BODY void add_outer_rows(const Tiles<T>& dy, const Tiles<T>& x, int64_t out,
                                  const WeightView<T>& dw) {
  int64_t i = 0;
  for (; i + 2 <= dw.ins; i += 2) add_outer_block<T, kOuts, 2>(dy, x, out, i, dw);
  if (i < dw.ins) add_outer_block<T, kOuts, 1>(dy, x, out, i, dw);
}

template <class T>
MEGADICT_BODY void add_outer_all(const Tiles<T>& dy, const Tiles<T>& x, const WeightView<T>& dw) {
  int64_t o = 0;
  for (; o + kBlock <= dw.outs; o += kBlock) add_outer_rows<T, kBlock>(dy, x, o, dw);
  for (; o < dw.outs; ++o) add_outer_rows<T, 1>(dy, x, o, dw);
}

template <class T>
MEGADICT_BODY void add_all_sums(const Tiles<T>& dy, T* db) {
  for (int64_t f = 0; f < dy.features(); ++f) {
    Vector<T> sums = {};
    for (int64_t t = 0; t < dy.tiles(); ++t)
      for (int64_t part = 0; part < kLane; part += kVector<T>)
        sums += vector_at(dy.tile(t) + f * kLane + part);
    db[f] += sum_of<T>(sums);
  }
}

}  // namespace

#define MEGADICT_PRODUCTS_OF(T)                                                             \
  MEGADICT_CLONES void multiply(WeightView<const T> w, const T* bias, const Tiles<T>& x,    \
                                Tiles<T>& y) {                                              \
    multiply_all<T>({w.values, w.outs, w.ins, w.ins, 1}, bias, x, y);                       \
  }                                                                                         \
  MEGADICT_CLONES void multiply_transposed(WeightView<const T> w, const Tiles<T>& y,        \
                                           Tiles<T>& x) {                                   \
    multiply_all<T>({w.values, w.ins, w.outs, 1, w.ins}, nullptr, y, x);                    \
  }                                                                                         \
  MEGADICT_CLONES void add_outer(const Tiles<T>& dy, const Tiles<T>& x, WeightView<T> dw) { \
    add_outer_all<T>(dy, x, dw);                                                            \
  }                                                                                         \
  MEGADICT_CLONES void add_sums(const Tiles<T>& dy, T* db) {                                \
    add_all_sums<T>(dy, db);                                                                \
  }

MEGADICT_PRODUCTS_OF(float)
MEGADICT_PRODUCTS_OF(double)

}  // namespace megadict
