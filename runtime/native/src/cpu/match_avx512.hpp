// What the AVX-512 paths share (they differ in the number format and the product), and AMX takes of them.
#pragma once

#include <immintrin.h>

#include "match_bound.hpp"

namespace vosrt {
namespace {

struct Avx512Compare {
    static uint32_t at_least(const float *scores, const float *thresholds) {
        return lanes<_CMP_GE_OQ>(_mm512_load_ps(scores), _mm512_load_ps(scores + 16), thresholds);
    }
    static uint32_t not_less(const float *bounds, float bias, const float *limits) {
        const __m512 add = _mm512_set1_ps(bias);
        return lanes<_CMP_NLT_UQ>(_mm512_add_ps(_mm512_load_ps(bounds), add), _mm512_add_ps(_mm512_load_ps(bounds + 16), add), limits);
    }

    template <int kPredicate>
    static uint32_t lanes(__m512 low, __m512 high, const float *limits) {
        const __mmask16 low_lanes = _mm512_cmp_ps_mask(low, _mm512_load_ps(limits), kPredicate);
        const __mmask16 high_lanes = _mm512_cmp_ps_mask(high, _mm512_load_ps(limits + 16), kPredicate);
        return static_cast<uint32_t>(low_lanes) | static_cast<uint32_t>(high_lanes) << 16;
    }
};

struct Fp32Product {
    using Element = float;
    static constexpr bool kCentred = false;
    static constexpr int32_t kGroup = 1;
    static __m512 load(const float *query) { return _mm512_load_ps(query); }
    static __m512 broadcast(const float *key) { return _mm512_set1_ps(*key); }
    static __m512 add(__m512 sum, __m512 query, __m512 key) { return _mm512_fmadd_ps(query, key, sum); }
};

template <class Product>
struct Avx512Ops {
    using Element = typename Product::Element;
    using Fp32 = Avx512Ops<Fp32Product>;
    struct State {};
    static constexpr bool kCentred = Product::kCentred;
    static constexpr int32_t kGroup = Product::kGroup, kRowMultiple = 32;
    static constexpr int32_t kWidth = 8, kHeight = 4, kLanes = 32, kKeys = 12;
    static constexpr int32_t kFirst = 16 * kGroup;
    static constexpr float kCompareChannels = 0.0f, kSurvivorCost = 1.15f;
    static constexpr int32_t kPairLanes = 8;

    // Calls done(j, low, high) with the sums of key j, lanes 0-15 and 16-31.
    //
    // Keys lie far apart, which hardware prefetchers follow poorly: each cache line is asked for one line ahead, and
    // the last line of a block asks for the first of the next. Three keys share a pointer so that addresses fit the
    // general registers.
    template <int32_t N, class Done>
    [[gnu::noinline]] static void sums_of(const Element *query, const Element *keys, ptrdiff_t stride, int32_t steps,
                                          const Done &done) {
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
        for (int32_t j = 0; j < N; ++j) done(j, low[j], high[j]);
    }

    template <class Done>
    static void sums(const Element *query, const Element *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                     const Done &done) {
        switch (count) {
            case 1: return sums_of<1>(query, keys, stride, steps, done);
            case 2: return sums_of<2>(query, keys, stride, steps, done);
            case 3: return sums_of<3>(query, keys, stride, steps, done);
            case 4: return sums_of<4>(query, keys, stride, steps, done);
            case 5: return sums_of<5>(query, keys, stride, steps, done);
            case 6: return sums_of<6>(query, keys, stride, steps, done);
            case 7: return sums_of<7>(query, keys, stride, steps, done);
            case 8: return sums_of<8>(query, keys, stride, steps, done);
            case 9: return sums_of<9>(query, keys, stride, steps, done);
            case 10: return sums_of<10>(query, keys, stride, steps, done);
            case 11: return sums_of<11>(query, keys, stride, steps, done);
            default: return sums_of<12>(query, keys, stride, steps, done);
        }
    }

    static void scores(const Element *query, const Element *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       float *out) {
        sums(query, keys, stride, count, steps, [&](int32_t j, __m512 low, __m512 high) {
            _mm512_store_ps(out + j * kLanes, low);
            _mm512_store_ps(out + j * kLanes + 16, high);
        });
    }

    static void screen(const Element *query, const Element *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       const float *limits, uint32_t *hits) {
        const __m512 limit0 = _mm512_load_ps(limits), limit1 = _mm512_load_ps(limits + 16);
        sums(query, keys, stride, count, steps, [&](int32_t j, __m512 low, __m512 high) {
            hits[j] = static_cast<uint32_t>(_mm512_cmp_ps_mask(low, limit0, _CMP_NLT_UQ)) |
                      static_cast<uint32_t>(_mm512_cmp_ps_mask(high, limit1, _CMP_NLT_UQ)) << 16;
        });
    }

    // Rows are padded with zeros to whole vectors.
    static float dot(const Element *a, const Element *b, int32_t channels) {
        constexpr int32_t kVector = 16 * kGroup, kSums = 4;
        __m512 sums[kSums] = {};
        const auto step = [&](int32_t i, int32_t c) {
            sums[i] = Product::add(sums[i], Product::load(a + c), Product::load(b + c));
        };
        int32_t c = 0;
        for (; c + kSums * kVector <= channels; c += kSums * kVector)
#pragma GCC unroll 4
            for (int32_t i = 0; i < kSums; ++i) step(i, c + i * kVector);
        for (; c < channels; c += kVector) step(0, c);
        const __m512 all = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
        // Neither _mm512_reduce_add_ps nor a cast: GCC 12 warns of its own header.
        const __m256 eight = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, all, 0), _mm512_maskz_extractf32x8_ps(0xff, all, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }

    static uint32_t at_least(const float *scores, const float *thresholds) {
        return Avx512Compare::at_least(scores, thresholds);
    }
};

}  // namespace
}  // namespace vosrt
