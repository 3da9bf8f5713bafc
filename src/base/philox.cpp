#include "base/philox.h"

#include <cmath>

namespace megadict {

Philox4 philox4x32_10(Philox4 counter, std::array<uint32_t, 2> key) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0], product1 = kMultiplier1 * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

Philox4 Rng::words(uint64_t id, uint32_t draw) const {
  // 128 counter bits: id 48 | draw 16 | step 40 | purpose 24; the seed is the key.
  const uint64_t low = (id & 0xFFFFFFFFFFFFull) | (static_cast<uint64_t>(draw) << 48);
  const uint64_t high =
      (step & 0xFFFFFFFFFFull) | (static_cast<uint64_t>(static_cast<uint32_t>(purpose)) << 40);
  return philox4x32_10({static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                        static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)},
                       {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

uint64_t Rng::bits64(uint64_t id, uint32_t draw) const {
  const Philox4 w = words(id, draw);
  return (static_cast<uint64_t>(w[1]) << 32) | w[0];
}

double Rng::uniform(uint64_t id, uint32_t draw) const {
  return static_cast<double>(bits64(id, draw) >> 11) * 0x1p-53;
}

std::array<double, 2> Rng::normals(uint64_t id, uint32_t draw) const {
  const Philox4 w = words(id, draw);
  const uint64_t a = (static_cast<uint64_t>(w[1]) << 32) | w[0];
  const uint64_t b = (static_cast<uint64_t>(w[3]) << 32) | w[2];
  const double u = (static_cast<double>(a >> 11) + 0.5) * 0x1p-53;  // (0, 1): log is finite
  const double angle = 2.0 * M_PI * static_cast<double>(b >> 11) * 0x1p-53;
  const double radius = std::sqrt(-2.0 * std::log(u));
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace megadict
