// AVX-512 BF16: 32 queries against up to 12 keys, two channels a step, products in bf16, sums in fp32. Bounds come from 8-bit integers
// (VNNI) first, which all these processors have too.
#include "match_avx512.hpp"

namespace vosrt {
namespace {

struct Bf16Product {
    using Element = uint16_t;
    static constexpr bool kCentred = true;
    static constexpr int32_t kGroup = 2;
    static __m512 load(const uint16_t *query) { return _mm512_load_ps(query); }
    static __m512 broadcast(const uint16_t *key) {
        int32_t pair;
        std::memcpy(&pair, key, sizeof pair);
        return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
    }
    static __m512 add(__m512 sum, __m512 query, __m512 key) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(query), reinterpret_cast<__m512bh>(key));
    }
};

// Queries stay in registers; sums of one key wait for those of the next while they are compared.
template <int32_t kSteps>
void byte_sums(const int32_t (*queries)[32], const std::byte *keys, int32_t count, const int32_t *limits, uint32_t *hits) {
    __m512i low[kSteps], high[kSteps];
#pragma GCC unroll 8
    for (int32_t step = 0; step < kSteps; ++step) {
        low[step] = _mm512_load_si512(queries[step]);
        high[step] = _mm512_load_si512(queries[step] + 16);
    }
    const __m512i low_limit = _mm512_load_si512(limits), high_limit = _mm512_load_si512(limits + 16);
    constexpr size_t kOffset = offsetof(ByteHead, offset) + (kSteps == ByteHead::kAll / 4) * sizeof(int32_t);
    for (int32_t j = 0; j < count; ++j, keys += sizeof(ByteHead)) {
        const auto broadcast = [&](size_t at) {
            int32_t four;
            std::memcpy(&four, keys + at, sizeof four);
            return _mm512_set1_epi32(four);
        };
        __m512i low_sum = broadcast(kOffset), high_sum = low_sum;
#pragma GCC unroll 8
        for (int32_t step = 0; step < kSteps; ++step) {
            const __m512i key = broadcast(4 * step);
            low_sum = _mm512_dpbusd_epi32(low_sum, key, low[step]);
            high_sum = _mm512_dpbusd_epi32(high_sum, key, high[step]);
        }
        hits[j] = static_cast<uint32_t>(_mm512_cmpge_epi32_mask(low_sum, low_limit)) |
                  static_cast<uint32_t>(_mm512_cmpge_epi32_mask(high_sum, high_limit)) << 16;
    }
}

struct Bf16Ops : Avx512Ops<Bf16Product> {
    static int32_t screen_bytes(const ByteQueries<kLanes>::Packed &queries, bool whole, const std::byte *keys, int32_t count, int32_t cell,
                                const int32_t *limits, uint32_t lanes, const uint32_t *window, Survivor *survivors) {
        alignas(64) uint32_t hits[64];
        (whole ? byte_sums<ByteHead::kAll / 4> : byte_sums<ByteHead::kShort / 4>)(queries.elements, keys, count, limits, hits);
        const __m512i inside = _mm512_set1_epi32(static_cast<int32_t>(lanes));
        int32_t found = 0;
        for (int32_t from = 0; from < count; from += 16) {
            const auto valid = static_cast<__mmask16>(count - from < 16 ? (1u << (count - from)) - 1 : 0xffffu);
            __m512i some = _mm512_and_si512(_mm512_load_si512(hits + from), inside);
            if (window != nullptr) some = _mm512_and_si512(some, _mm512_maskz_loadu_epi32(valid, window + from));
            uint32_t keys_left = _mm512_mask_test_epi32_mask(valid, some, some);
            if (keys_left == 0) continue;
            _mm512_store_si512(hits + from, some);
            for (; keys_left; keys_left &= keys_left - 1) {
                const int32_t j = from + __builtin_ctz(keys_left);
                survivors[found++] = {cell + j, hits[j]};
            }
        }
        return found;
    }
};

}  // namespace

const MatchKernel kMatchAvx512Bf16 = make_kernel<Bf16Ops>(VOSRT_ISA_AVX512_BF16);

}  // namespace vosrt
