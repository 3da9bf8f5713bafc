// What a screen works on, and every version of its tile that runs here.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/kernel_set.h"
#include "kernels/screen_tile.h"
#include "support/emulated_amx.h"

namespace megadict::test {

inline at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator);
}

struct Input {
  at::Tensor x, w, bias;
  EncodeArgs args() const { return {x, w, bias}; }
};

struct NamedTile {
  std::string name;
  ScreenTile tile;
};

// Those that this processor has, and AMX emulated.
inline std::vector<NamedTile> tiles_of(ScreenKind kind) {
  std::vector<NamedTile> out;
  const std::string element(screen_product(kind).element);
  for (const ScreenTile& tile : all_screen_tiles(kind))
    if (tile.isa <= best_isa())
      out.push_back({element + "_" + std::string(name_of(tile.isa)), tile});
  out.push_back({element + "_emulated_amx", kind == ScreenKind::int8
                                                ? emulated_amx_tile<Int8Product>()
                                                : emulated_amx_tile<Bf16Product>()});
  return out;
}

inline std::vector<NamedTile> every_tile() {
  std::vector<NamedTile> out;
  for (const ScreenProduct& product : all_screen_products())
    for (NamedTile& tile : tiles_of(product.kind)) out.push_back(std::move(tile));
  return out;
}

}  // namespace megadict::test
