// AVX2 + FMA: 16 queries in two registers against up to 6 keys.
#include <immintrin.h>

#include <utility>

#include "match_bound.hpp"

namespace vosrt {
namespace {

struct Avx2Ops {
    using Element = float;
    using Fp32 = Avx2Ops;
    struct State {};
    static constexpr bool kCentred = false;
    static constexpr int32_t kGroup = 1, kRowMultiple = 1, kWidth = 4, kHeight = 4, kLanes = 16, kKeys = 6;
    static constexpr int32_t kFirst = 16;
    static constexpr float kCompareChannels = 0.0f, kSurvivorCost = 1.15f;
    static constexpr int32_t kPairLanes = 5;

    // Calls done(j, low, high) with the sums of key j, lanes 0-7 and 8-15.
    template <int32_t N, class Done>
    static void sums_of(const float *query, const float *keys, ptrdiff_t stride, int32_t steps, const Done &done) {
        __m256 low[N], high[N];
        for (int32_t j = 0; j < N; ++j) low[j] = high[j] = _mm256_setzero_ps();
        for (int32_t step = 0; step < steps; ++step, query += kLanes) {
            const __m256 q0 = _mm256_load_ps(query), q1 = _mm256_load_ps(query + 8);
#pragma GCC unroll 6
            for (int32_t j = 0; j < N; ++j) {
                const __m256 key = _mm256_broadcast_ss(keys + j * stride + step);
                low[j] = _mm256_fmadd_ps(q0, key, low[j]);
                high[j] = _mm256_fmadd_ps(q1, key, high[j]);
            }
        }
        for (int32_t j = 0; j < N; ++j) done(j, low[j], high[j]);
    }

    template <class Done>
    static void sums(const float *query, const float *keys, ptrdiff_t stride, int32_t count, int32_t steps, const Done &done) {
        switch (count) {
            case 1: return sums_of<1>(query, keys, stride, steps, done);
            case 2: return sums_of<2>(query, keys, stride, steps, done);
            case 3: return sums_of<3>(query, keys, stride, steps, done);
            case 4: return sums_of<4>(query, keys, stride, steps, done);
            case 5: return sums_of<5>(query, keys, stride, steps, done);
            default: return sums_of<6>(query, keys, stride, steps, done);
        }
    }

    static void scores(const float *query, const float *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       float *out) {
        sums(query, keys, stride, count, steps, [&](int32_t j, __m256 low, __m256 high) {
            _mm256_store_ps(out + j * kLanes, low);
            _mm256_store_ps(out + j * kLanes + 8, high);
        });
    }

    static void screen(const float *query, const float *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       const float *limits, uint32_t *hits) {
        const __m256 limit0 = _mm256_load_ps(limits), limit1 = _mm256_load_ps(limits + 8);
        sums(query, keys, stride, count, steps, [&](int32_t j, __m256 low, __m256 high) {
            hits[j] = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(low, limit0, _CMP_NLT_UQ))) |
                      static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(high, limit1, _CMP_NLT_UQ))) << 8;
        });
    }

    static uint32_t at_least(const float *scores, const float *thresholds) {
        const __m256 low = _mm256_cmp_ps(_mm256_load_ps(scores), _mm256_load_ps(thresholds), _CMP_GE_OQ);
        const __m256 high = _mm256_cmp_ps(_mm256_load_ps(scores + 8), _mm256_load_ps(thresholds + 8), _CMP_GE_OQ);
        return static_cast<uint32_t>(_mm256_movemask_ps(low)) | static_cast<uint32_t>(_mm256_movemask_ps(high)) << 8;
    }
};

}  // namespace

const MatchKernel kMatchAvx2 = make_kernel<Avx2Ops>(VOSRT_ISA_AVX2);

}  // namespace vosrt
