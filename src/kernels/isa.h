// Which instructions the hand-written kernels use. Every kernel with several versions keeps them in
// a table, best first; what runs is the first that isa_in_use() includes. (LibTorch's own kernels
// choose for themselves.)
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace megadict {

// Each includes those before it.
enum class Isa : uint8_t { scalar, avx2, avx512, avx512_vnni, avx512_bf16, amx };
inline constexpr size_t kIsaCount = 6;

struct IsaFact {
  Isa isa;
  std::string_view name, instructions;
};
std::span<const IsaFact> all_isas();  // best first
std::string_view name_of(Isa isa);
Isa isa_named(std::string_view name);  // exit 2 (agreed) where there is none of that name

Isa best_isa();  // that this processor has
Isa isa_in_use();
// From here on, for the whole process: at most this. One that the processor lacks is an Error.
void use_isa(Isa isa);

// Of a table of versions with a member `isa`, best first, scalar last: the best that `isa`
// includes.
template <class Version, size_t kCount>
constexpr const Version& best_available(const std::array<Version, kCount>& versions, Isa isa) {
  for (const Version& version : versions)
    if (version.isa <= isa) return version;
  return versions.back();
}

}  // namespace megadict
