// A candidate in one integer, so that a comparison of integers is the order of candidates: by similarity, then position,
// then cell. Lists of the best candidates, held by the four threads of a quad.
#pragma once

#include "platform.hpp"

namespace vosrt::cuda {

// High half: similarity, its order kept. Low half: complement of position * cells + cell. A high half of 0 is no
// candidate; no similarity but a NaN has it.
using Packed = uint64_t;

VOSRT_BOTH inline uint32_t ordered(float similarity) {
    const uint32_t bits = bits_of(similarity + 0.0f);  // -0 becomes +0: they are equal
    return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}
VOSRT_BOTH inline float similarity_of(Packed candidate) {
    const auto high = static_cast<uint32_t>(candidate >> 32);
    return float_of((high & 0x80000000u) ? high & 0x7fffffffu : ~high);
}
VOSRT_BOTH inline uint32_t place_of(int32_t position, int32_t cell, int32_t cells) {
    return static_cast<uint32_t>(position) * static_cast<uint32_t>(cells) + static_cast<uint32_t>(cell);
}
VOSRT_BOTH inline Packed pack(float similarity, uint32_t place) {
    return (static_cast<Packed>(ordered(similarity)) << 32) | static_cast<uint32_t>(~place);
}
VOSRT_BOTH inline int32_t position_of(Packed candidate, int32_t cells) {
    return static_cast<int32_t>(~static_cast<uint32_t>(candidate) / static_cast<uint32_t>(cells));
}
VOSRT_BOTH inline int32_t cell_of(Packed candidate, int32_t cells) {
    return static_cast<int32_t>(~static_cast<uint32_t>(candidate) % static_cast<uint32_t>(cells));
}
// The same cell one position further: a copy of the reference.
VOSRT_BOTH inline Packed next_copy(Packed candidate, int32_t cells) { return candidate - static_cast<uint32_t>(cells); }
VOSRT_BOTH inline bool is_candidate(Packed value) { return (value >> 32) != 0; }

// What one thread of a quad holds of a list of `length` candidates, at most 4 N, unsorted. Empty places hold different small numbers, so
// that all values of a list differ and the least one has one owner; those that a list has not hold what is never the least.
template <int N>
struct Share {
    Packed values[N];

    VOSRT_BOTH void clear(int32_t member, int32_t length) {
        VOSRT_UNROLL
        for (int n = 0; n < N; ++n) values[n] = 4 * n + member < length ? static_cast<Packed>(4 * n + member) : ~Packed{0};
    }
    VOSRT_BOTH Packed least() const {
        Packed found = values[0];
        VOSRT_UNROLL
        for (int n = 1; n < N; ++n) found = values[n] < found ? values[n] : found;
        return found;
    }
    VOSRT_BOTH void replace(Packed old, Packed value) {
        VOSRT_UNROLL
        for (int n = 0; n < N; ++n) values[n] = values[n] == old ? value : values[n];
    }
};

// A similarity that a candidate must reach to enter a list whose least value is `least`.
VOSRT_BOTH inline float threshold_of(Packed least) { return is_candidate(least) ? similarity_of(least) : -INFINITY; }

}  // namespace vosrt::cuda
