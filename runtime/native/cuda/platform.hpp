// What lets the same source be a CUDA kernel (nvcc) and a function that tests run on the processor (any C++ compiler).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define VOSRT_BOTH __host__ __device__  // plain functions
#define VOSRT_KERNEL __device__         // bodies of kernels, templates over the thread that runs them
#define VOSRT_UNROLL _Pragma("unroll")  // before a loop over arrays that are to stay in registers
#else
#define VOSRT_BOTH
#define VOSRT_KERNEL
#define VOSRT_UNROLL
#endif

namespace vosrt::cuda {

VOSRT_BOTH constexpr int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
VOSRT_BOTH constexpr int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
VOSRT_BOTH constexpr int32_t ceil_divide(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Place of the lowest bit that is set; there is one.
VOSRT_BOTH inline int32_t lowest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __ffs(static_cast<int>(bits)) - 1;
#else
    return __builtin_ctz(bits);
#endif
}

VOSRT_BOTH inline int32_t count_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

VOSRT_BOTH inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
VOSRT_BOTH inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

VOSRT_BOTH inline uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
VOSRT_BOTH inline double double_of(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Round to nearest even; NaN stays NaN. As in src/cpu/match_kernel.hpp.
VOSRT_BOTH inline uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
VOSRT_BOTH inline float from_bf16(uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); }

// Eight neighbours, which one instruction loads: two in a word, the first one in its low half.
struct alignas(16) Eight {
    uint32_t pairs[4];

    VOSRT_BOTH float at(int32_t i) const { return float_of(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u); }
};
VOSRT_BOTH inline Eight load_eight(const void *aligned) {
#if defined(__CUDA_ARCH__)
    return *static_cast<const Eight *>(aligned);  // of memcpy nvcc makes a load for each byte
#else
    Eight eight;
    memcpy(&eight, aligned, sizeof eight);
    return eight;
#endif
}
// Not from shared memory: where a pointer was chosen among several, nvcc does not see that by itself.
VOSRT_BOTH inline Eight load_global_eight(const uint16_t *aligned) {
#if defined(__CUDA_ARCH__)
    __builtin_assume(__isGlobal(aligned));
#endif
    return load_eight(aligned);
}

}  // namespace vosrt::cuda
