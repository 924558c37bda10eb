// fp32 products of 16 queries with up to 6 keys, which AVX2 and NEON share: they differ in how many lanes a register has.
//
// Vector provides
//   Register        a register of kWidth floats
//   zero(), load(p), store(p, a)    to store, `p` is aligned to 64 bytes, or as far from there as whole registers are
//   broadcast(p)    *p in every lane
//   fused(a, b, c)  a * b + c, rounded once
//   at_least(a, b), not_less(a, b)  bit per lane: a >= b, false for NaN; not (a < b), true for NaN
#pragma once

#include "match_bound.hpp"

namespace vosrt {
namespace {

template <class Vector>
struct RowOps {
    using Element = float;
    using Fp32 = RowOps;
    using Register = typename Vector::Register;
    struct State {};
    static constexpr bool kCentred = false;
    // 6 keys: their sums, the queries and a key fit the 16 registers of AVX2, and the 32 half as long ones of NEON.
    static constexpr int32_t kGroup = 1, kRowMultiple = 1, kWidth = 4, kHeight = 4, kLanes = 16, kKeys = 6;
    static constexpr int32_t kFirst = 16;
    static constexpr float kCompareChannels = 0.0f, kSurvivorCost = 1.15f;
    static constexpr int32_t kPairLanes = 5;
    static constexpr int32_t kVectors = kLanes / Vector::kWidth;

    // Calls done(j, sums) with the sums of key j, Register [kVectors].
    template <int32_t N, class Done>
    static void sums_of(const float *query, const float *keys, ptrdiff_t stride, int32_t steps, const Done &done) {
        Register sums[N][kVectors];
        for (int32_t j = 0; j < N; ++j)
            for (int32_t v = 0; v < kVectors; ++v) sums[j][v] = Vector::zero();
        for (int32_t step = 0; step < steps; ++step, query += kLanes) {
            Register lanes[kVectors];
            for (int32_t v = 0; v < kVectors; ++v) lanes[v] = Vector::load(query + v * Vector::kWidth);
#pragma GCC unroll 6
            for (int32_t j = 0; j < N; ++j) {
                const Register key = Vector::broadcast(keys + j * stride + step);
#pragma GCC unroll 4
                for (int32_t v = 0; v < kVectors; ++v) sums[j][v] = Vector::fused(lanes[v], key, sums[j][v]);
            }
        }
        for (int32_t j = 0; j < N; ++j) done(j, sums[j]);
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

    static void scores(const float *query, const float *keys, ptrdiff_t stride, int32_t count, int32_t steps, float *out) {
        sums(query, keys, stride, count, steps, [&](int32_t j, const Register *sums) {
            for (int32_t v = 0; v < kVectors; ++v) Vector::store(out + j * kLanes + v * Vector::kWidth, sums[v]);
        });
    }

    static void screen(const float *query, const float *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       const float *limits, uint32_t *hits) {
        sums(query, keys, stride, count, steps, [&](int32_t j, const Register *sums) {
            hits[j] = 0;
            for (int32_t v = 0; v < kVectors; ++v) {
                const int32_t first = v * Vector::kWidth;
                hits[j] |= Vector::not_less(sums[v], Vector::load(limits + first)) << first;
            }
        });
    }

    // Rows are padded with zeros to more than a register.
    static float dot(const float *a, const float *b, int32_t channels) {
        constexpr int32_t kSums = 4;
        Register sums[kSums];
        for (Register &sum : sums) sum = Vector::zero();
        const auto step = [&](int32_t i, int32_t c) { sums[i] = Vector::fused(Vector::load(a + c), Vector::load(b + c), sums[i]); };
        int32_t c = 0;
        for (; c + kSums * Vector::kWidth <= channels; c += kSums * Vector::kWidth)
            for (int32_t i = 0; i < kSums; ++i) step(i, c + i * Vector::kWidth);
        for (; c < channels; c += Vector::kWidth) step(0, c);
        alignas(64) float partial[kSums * Vector::kWidth];
        for (int32_t i = 0; i < kSums; ++i) Vector::store(partial + i * Vector::kWidth, sums[i]);
        for (int32_t half = kSums * Vector::kWidth / 2; half > 0; half /= 2)
            for (int32_t i = 0; i < half; ++i) partial[i] += partial[i + half];
        return partial[0];
    }

    static uint32_t at_least(const float *scores, const float *thresholds) {
        uint32_t lanes = 0;
        for (int32_t first = 0; first < kLanes; first += Vector::kWidth)
            lanes |= Vector::at_least(Vector::load(scores + first), Vector::load(thresholds + first)) << first;
        return lanes;
    }
};

}  // namespace
}  // namespace vosrt
