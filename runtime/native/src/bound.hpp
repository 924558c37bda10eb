// What the bounded searches of both libraries have in common; cpu/match_bound.hpp derives it. nvcc compiles constexpr functions for GPUs too.
#pragma once

#include <bit>
#include <cstdint>

namespace vosrt::bound {

inline constexpr float kLargest = 1e30f;        // of |k|^2 and |bias|: sums of products stay far from overflow
inline constexpr float kRoundedBf16 = 0x1p-9f;  // the share of a coordinate that bf16 rounds off, at most

// c: what sums of K terms may be off, in both factors, in bounds and in full products, with room to spare: tensor cores truncate where
// processors round (Fasi et al. 2021), which doubles the error of a sum and leaves half of the room.
constexpr float slack(int32_t channels) { return 8.0f * static_cast<float>(channels + 64) * 0x1p-24f; }

// n^2 of a head, from |k|^2 and sums over the head's coordinates: exact x rounded, rounded^2, (exact - rounded)^2. `balance` is a^2.
// Denormal products are lost on some paths: the last term is more than they can add up to.
constexpr float rest_square(float square, float along, float kept, float error, float balance, float slack) {
    const float rest = square - 2.0f * along + kept;
    return (rest > 0.0f ? rest : 0.0f) + error / balance + balance * kept + slack * square + 1e-34f;
}
inline constexpr float kRaise = 1.0001f;  // of what comes out of a square root

// To bf16, away from zero; for positive values.
constexpr uint16_t bf16_up(float value) { return static_cast<uint16_t>((std::bit_cast<uint32_t>(value) + 0xffffu) >> 16); }

}  // namespace vosrt::bound
