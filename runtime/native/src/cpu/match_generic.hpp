// Portable C++: loops of fixed length that any compiler turns into whatever vectors its target has.
#pragma once

#include "match_bound.hpp"

namespace vosrt {
namespace {

struct GenericOps {
    using Element = float;
    using Fp32 = GenericOps;
    struct State {};
    static constexpr bool kCentred = false;
    static constexpr int32_t kGroup = 1, kRowMultiple = 1, kWidth = 4, kHeight = 4, kLanes = 16, kKeys = 8;
    static constexpr int32_t kFirst = 16;
    static constexpr float kCompareChannels = 0.0f, kSurvivorCost = 1.15f;
    static constexpr int32_t kPairLanes = 5;

#if defined(__GNUC__)
    // 16 bytes are a register on every processor with vectors at all (SSE2, NEON, VSX, WASM).
    using Vector __attribute__((vector_size(16))) = float;
#else
    struct Vector {
        float lane[4];
        friend Vector operator*(Vector a, float b) {
            for (float &value : a.lane) value *= b;
            return a;
        }
        Vector &operator+=(const Vector &other) {
            for (int i = 0; i < 4; ++i) lane[i] += other.lane[i];
            return *this;
        }
    };
#endif
    static constexpr int32_t kVectors = kLanes / 4;

    static void scores(const float *query, const float *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       float *out) {
        count = smaller(count, kKeys);  // never more, which GCC does not see and warns of
        for (; count >= 2; count -= 2, keys += 2 * stride, out += 2 * kLanes)
            scores_of<2>(query, keys, stride, steps, out);
        if (count > 0) scores_of<1>(query, keys, stride, steps, out);
    }

    template <int32_t N>
    static void scores_of(const float *query, const float *keys, ptrdiff_t stride, int32_t steps, float *out) {
        Vector sums[N][kVectors] = {};
        for (int32_t step = 0; step < steps; ++step, query += kLanes) {
            Vector lanes[kVectors];
            std::memcpy(lanes, query, sizeof lanes);
            for (int32_t j = 0; j < N; ++j)
                for (int32_t v = 0; v < kVectors; ++v) sums[j][v] += lanes[v] * keys[j * stride + step];
        }
        for (int32_t j = 0; j < N; ++j) std::memcpy(out + j * kLanes, sums[j], sizeof sums[j]);
    }

    static void screen(const float *query, const float *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       const float *limits, uint32_t *hits) {
        alignas(64) float bounds[kKeys * kLanes];
        scores(query, keys, stride, count, steps, bounds);
        for (int32_t j = 0; j < count; ++j) hits[j] = not_less(bounds + j * kLanes, limits);
    }

    static uint32_t at_least(const float *scores, const float *thresholds) {
        uint32_t lanes = 0;
        for (int32_t lane = 0; lane < kLanes; ++lane)
            lanes |= static_cast<uint32_t>(scores[lane] >= thresholds[lane]) << lane;
        return lanes;
    }
    static uint32_t not_less(const float *bounds, const float *limits) {
        uint32_t lanes = 0;
        for (int32_t lane = 0; lane < kLanes; ++lane) lanes |= static_cast<uint32_t>(!(bounds[lane] < limits[lane])) << lane;
        return lanes;
    }
};

}  // namespace
}  // namespace vosrt
