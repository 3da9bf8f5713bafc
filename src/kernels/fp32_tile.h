// The product inside the exact encode: 64 rows of x against encoder rows, with a filter that keeps
// values above each row's threshold. Every pre-activation is one chain of fused multiply-adds over
// d ascending, then + bias: the same bits in every version, tile, batch, thread and shard (what
// deterministic mode rests on). A closed list of versions; tests compare each that runs here.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/isa.h"

namespace megadict {

struct ValueHit {
  int32_t latent;
  float value;
};

// Up to 64 rows of x, and where their hits go: values v with !(v <= threshold), NaN included.
struct Fp32Block {
  static constexpr int64_t kRows = 64;
  const float* x;          // [d][64]
  int64_t rows;            // in use; the others' lists stay empty
  const float* threshold;  // [64]; may rise in `full`
  ValueHit* hits;          // [64, capacity]
  int32_t* count;          // [64]
  int32_t capacity;
  void (*full)(Fp32Block&, int64_t row);  // makes room: row's list has `capacity` hits
  void* context;
};

struct Fp32Tile {
  Isa isa;
  // Encoder rows [first, last) of w [l, d], ascending.
  void (*run)(const float* w, const float* bias, int64_t d, int64_t first, int64_t last,
              Fp32Block&);
};

std::span<const Fp32Tile> all_fp32_tiles();  // best first, scalar last
const Fp32Tile& best_fp32_tile(Isa isa = isa_in_use());

}  // namespace megadict
