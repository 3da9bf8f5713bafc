#include "kernels/screen_pass.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "base/background.h"
#include "kernels/order.h"
#include "kernels/vector_ops.h"

namespace megadict {

namespace {

constexpr int64_t kBlock = RowBlock::kRows;
constexpr int64_t kChunkBytes = 384 << 10;  // of encoder rows: half of a usual L2
// Of a row's step, what is kept apart may be so much that fp32's rounding of it stays small.
constexpr double kApartRounding = 16 * 0x1p-20;
constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kNever = std::numeric_limits<float>::infinity();

}  // namespace

ScreenPass::ScreenPass(const EncodeArgs& args_, const ScreenRows& w_, int64_t k_, double window_)
    : args(args_),
      w(w_),
      bias(args_.b_enc_l.const_data_ptr<float>()),
      k(k_),
      rows(args_.x_bd.size(0)),
      blocks((rows + kBlock - 1) / kBlock),
      capacity(std::max<int64_t>(512, 6 * k_)),
      dims(static_cast<int64_t>(w_.apart.size())),
      window(window_) {
  const int64_t padded = blocks * kBlock;
  x = Buffer<uint8_t>(padded * w.p, 0);
  for (auto* v : {&norm, &unit, &inverse, &step, &size, &reach}) *v = Buffer<float>(padded, 0.0f);
  threshold = Buffer<float>(padded, kNever);
  apart = Buffer<float>(padded * dims, 0.0f);
  hits = Buffer<Hit>(padded * capacity);
  count = Buffer<int32_t>(padded, 0);
  hopeless = Buffer<uint8_t>(padded, 0);
}

float ScreenPass::slack() const {
  return static_cast<float>(window / std::sqrt(12.0));
}

void ScreenPass::pack(int64_t row) {
  std::vector<float> rest(args.x_bd.const_data_ptr<float>() + row * w.d,
                          args.x_bd.const_data_ptr<float>() + (row + 1) * w.d);
  norm[row] = static_cast<float>(std::sqrt(dot(rest.data(), rest.data(), w.d)));
  double apart_square = 0;
  for (int64_t i = 0; i < dims; ++i) {
    float& value = rest[static_cast<size_t>(w.apart[static_cast<size_t>(i)])];
    *apart_at(row, i) = std::exchange(value, 0.0f);
    apart_square += static_cast<double>(*apart_at(row, i)) * *apart_at(row, i);
  }
  std::vector<uint8_t> packed(static_cast<size_t>(w.p));
  const PackedRow facts = w.product->pack(rest.data(), w.d, packed.data());
  const double its_step =
      std::hypot(facts.step, w.product->sum_step * static_cast<double>(w.d) * facts.size);
  unit[row] = facts.unit;
  inverse[row] = 1 / facts.unit;
  step[row] = static_cast<float>(its_step);
  size[row] = facts.size;
  // A latent that passes always passes a row of zeros too.
  reach[row] =
      std::max(slack() * static_cast<float>(w.product->reach(step[row], size[row])) * inverse[row],
               std::numeric_limits<float>::min());
  if (!facts.usable || !std::isfinite(inverse[row]) || !std::isfinite(reach[row]) ||
      !(kApartRounding * std::sqrt(apart_square) <= its_step)) {
    hopeless[row] = 1;
    return;
  }
  for (int64_t i = 0; i < dims; ++i) *apart_at(row, i) *= inverse[row];
  const uint32_t offset = 0x01010101u * static_cast<uint32_t>(w.product->offset);
  uint8_t* to = x.data() + row / kBlock * kBlock * w.p + row % kBlock * 4;
  for (int64_t i = 0; i < w.p; i += 4, to += kBlock * 4) {
    uint32_t four;
    std::memcpy(&four, packed.data() + i, 4);
    four ^= offset;  // int8: + 128
    std::memcpy(to, &four, 4);
  }
}

float* ScreenPass::apart_at(int64_t row, int64_t i) {
  return apart.data() + (row / kBlock * dims + i) * kBlock + row % kBlock;
}

void ScreenPass::start_at(int64_t row, float value) {
  threshold[row] = hopeless[row] ? kNever : std::max(value, 0.0f) * inverse[row];
}

double ScreenPass::value_of(int64_t row, const Hit& hit) {
  const int64_t j = hit.latent;
  double value = w.product->value(hit.sum, w.step[j], w.shift[j]);
  for (int64_t i = 0; i < dims; ++i)
    value += static_cast<double>(*apart_at(row, i)) * w.apart_w[j * dims + i];
  return unit[row] * value + bias[j];
}

double ScreenPass::margin_of(int64_t row, int64_t latent) const {
  const double a = static_cast<double>(step[row]) * w.size[latent],
               b = static_cast<double>(w.step[latent]) * size[row];
  return window * std::sqrt((a * a + b * b) / 12);
}

void ScreenPass::make_room(int64_t row) {
  Hit* list = hits.data() + row * capacity;
  std::vector<double> least(static_cast<size_t>(count[row]));
  for (size_t i = 0; i < least.size(); ++i)
    least[i] = value_of(row, list[i]) - margin_of(row, list[i].latent);
  std::nth_element(least.begin(), least.begin() + (k - 1), least.end(), std::greater<>());
  const double sure = least[static_cast<size_t>(k - 1)];
  threshold[row] = std::max(threshold[row], static_cast<float>(sure) * inverse[row]);
  Hit* end = std::remove_if(list, list + count[row], [&](const Hit& hit) {
    return value_of(row, hit) + margin_of(row, hit.latent) < sure;
  });
  count[row] = static_cast<int32_t>(end - list);
  if (count[row] > capacity / 4 * 3) {
    hopeless[row] = 1;
    threshold[row] = kNever;
    count[row] = 0;
  }
}

void ScreenPass::screen_blocks(const ScreenTile& tile, int64_t begin, int64_t end) {
  const int64_t chunk =
      std::max<int64_t>(tile.latents, kChunkBytes / w.p / tile.latents * tile.latents);
  for (int64_t first = 0; first < w.rows; first += chunk)
    for (int64_t b = begin; b < end; ++b) {
      struct At {
        ScreenPass* pass;
        int64_t row;
      } at{this, b * kBlock};
      const auto row = static_cast<size_t>(at.row);
      RowBlock block{x.data() + at.row * w.p,
                     inverse.data() + row,
                     reach.data() + row,
                     threshold.data() + row,
                     apart.data() + at.row * dims,
                     slack(),
                     hits.data() + at.row * capacity,
                     count.data() + row,
                     static_cast<int32_t>(capacity),
                     [](RowBlock& full, int64_t r) {
                       const At& where = *static_cast<At*>(full.context);
                       where.pass->make_room(where.row + r);
                     },
                     &at};
      tile.run(w, bias, first, std::min(w.rows, first + chunk), block);
      give_way();
    }
}

int64_t ScreenPass::resolve(int64_t row, float* value, int32_t* latent) {
  struct Candidate {
    double optimistic;
    int32_t latent;
  };
  const int64_t found = count[row];
  const Hit* list = hits.data() + row * capacity;
  std::vector<Candidate> left(static_cast<size_t>(found));
  for (size_t i = 0; i < left.size(); ++i)
    left[i] = {value_of(row, list[i]) + margin_of(row, list[i].latent), list[i].latent};
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.optimistic > b.optimistic;
  };
  if (found > k) std::nth_element(left.begin(), left.begin() + (k - 1), left.end(), better);
  std::vector<uint64_t> best;  // a heap, the k-th on top
  best.reserve(static_cast<size_t>(k));
  const float* w_enc = args.w_enc_ld.const_data_ptr<float>();
  const float* values = args.x_bd.const_data_ptr<float>() + row * w.d;
  int64_t evaluated = 0;
  for (const Candidate& one : left) {
    const bool enough = static_cast<int64_t>(best.size()) == k;
    if (one.optimistic < (enough ? key_value(best.front()) : 0.0f)) continue;
    const auto exact =
        static_cast<float>(dot(values, w_enc + one.latent * w.d, w.d) + bias[one.latent]);
    ++evaluated;
    const uint64_t key = order_key(exact, static_cast<uint32_t>(one.latent));
    if (exact <= 0 || (enough && key < best.front())) continue;
    if (enough) {
      std::pop_heap(best.begin(), best.end(), std::greater<>());
      best.pop_back();
    }
    best.push_back(key);
    std::push_heap(best.begin(), best.end(), std::greater<>());
  }
  std::sort(best.begin(), best.end(), std::greater<>());
  for (int64_t i = 0; i < k; ++i) {
    const bool there = i < static_cast<int64_t>(best.size());
    value[i] = there ? key_value(best[static_cast<size_t>(i)]) : kNone;
    latent[i] = there ? static_cast<int32_t>(key_position(best[static_cast<size_t>(i)])) : 0;
  }
  return evaluated;
}

}  // namespace megadict
