// What the AVX-512 paths share (they differ in the number format and the product), and AMX takes of them.
#pragma once

#include <immintrin.h>

#include "match_kernel.hpp"

namespace vosrt {
namespace {

struct Avx512Compare {
    static uint32_t at_least(const float *scores, const float *thresholds) {
        const __mmask16 low = _mm512_cmp_ps_mask(_mm512_load_ps(scores), _mm512_load_ps(thresholds), _CMP_GE_OQ);
        const __mmask16 high =
            _mm512_cmp_ps_mask(_mm512_load_ps(scores + 16), _mm512_load_ps(thresholds + 16), _CMP_GE_OQ);
        return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
    }
};

template <class Product>
struct Avx512Ops {
    using Element = typename Product::Element;
    struct State {};
    static constexpr bool kCentred = Product::kCentred;
    static constexpr int32_t kGroup = Product::kGroup, kRowMultiple = 32;
    static constexpr int32_t kWidth = 8, kHeight = 4, kLanes = 32, kKeys = 12;

    // Keys lie far apart, which hardware prefetchers follow poorly: each cache line is asked for one line ahead, and
    // the last line of a block asks for the first of the next. Three keys share a pointer so that addresses fit the
    // general registers.
    template <int32_t N>
    [[gnu::noinline]] static void scores_of(const Element *query, const Element *keys, ptrdiff_t stride, int32_t steps,
                                            float *out) {
        constexpr int32_t kLine = 64 / static_cast<int32_t>(sizeof(Element) * kGroup), kPointers = (N + 2) / 3;
        __m512 low[N], high[N];
        for (int32_t j = 0; j < N; ++j)
            low[j] = high[j] = _mm512_set1_ps(kCentred ? bias_after(keys + j * stride + steps * kGroup) : 0.0f);
        for (int32_t line = 0; line < steps; line += kLine) {
            const Element *ahead = line + kLine < steps ? keys + (line + kLine) * kGroup : keys + N * stride;
            for (int32_t j = 0; j < N; ++j)
                _mm_prefetch(reinterpret_cast<const char *>(ahead + j * stride), _MM_HINT_T0);
            const Element *at[kPointers];
            for (int32_t i = 0; i < kPointers; ++i) at[i] = keys + line * kGroup + 3 * i * stride;
            for (int32_t step = 0; step < kLine; ++step, query += kLanes * kGroup) {
                const __m512 q0 = Product::load(query), q1 = Product::load(query + 16 * kGroup);
#pragma GCC unroll 12
                for (int32_t j = 0; j < N; ++j) {
                    const __m512 key = Product::broadcast(at[j / 3] + (j % 3) * stride);
                    low[j] = Product::add(low[j], q0, key);
                    high[j] = Product::add(high[j], q1, key);
                }
                for (int32_t i = 0; i < kPointers; ++i) at[i] += kGroup;
            }
        }
        for (int32_t j = 0; j < N; ++j) {
            _mm512_store_ps(out + j * kLanes, low[j]);
            _mm512_store_ps(out + j * kLanes + 16, high[j]);
        }
    }

    static void scores(const Element *query, const Element *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       float *out) {
        switch (count) {
            case 1: return scores_of<1>(query, keys, stride, steps, out);
            case 2: return scores_of<2>(query, keys, stride, steps, out);
            case 3: return scores_of<3>(query, keys, stride, steps, out);
            case 4: return scores_of<4>(query, keys, stride, steps, out);
            case 5: return scores_of<5>(query, keys, stride, steps, out);
            case 6: return scores_of<6>(query, keys, stride, steps, out);
            case 7: return scores_of<7>(query, keys, stride, steps, out);
            case 8: return scores_of<8>(query, keys, stride, steps, out);
            case 9: return scores_of<9>(query, keys, stride, steps, out);
            case 10: return scores_of<10>(query, keys, stride, steps, out);
            case 11: return scores_of<11>(query, keys, stride, steps, out);
            default: return scores_of<12>(query, keys, stride, steps, out);
        }
    }

    static uint32_t at_least(const float *scores, const float *thresholds) {
        return Avx512Compare::at_least(scores, thresholds);
    }
};

}  // namespace
}  // namespace vosrt
