// The AMX path: 32 keys x 32 queries as 2 x 2 tiles of 16 x 16 sums.
//
// A tile of keys is 16 rows of 32 bf16 channels, read where they are stored; a tile of queries is 16 channel pairs
// of 16 queries, which is the packed order of match_bound.hpp. `Tiles` is the processor's or an emulation.
#pragma once

#include "match_bound.hpp"

namespace vosrt {
namespace {

template <class Tiles, class Compare, class Fp32Ops>
struct AmxOps {
    using Element = uint16_t;
    using Fp32 = Fp32Ops;
    using State = typename Tiles::Configured;
    static constexpr bool kCentred = true;
    static constexpr int32_t kGroup = 2, kRowMultiple = 32;
    static constexpr int32_t kWidth = 8, kHeight = 4, kLanes = 32, kKeys = 32;
    static constexpr int32_t kFirst = 32;
    // Tiles are stored and loaded again to be compared, and copying a key takes nearly as long as multiplying it.
    static constexpr float kCompareChannels = 64.0f, kSurvivorCost = 1.7f;
    static constexpr int32_t kPairLanes = 0;  // tiles multiply a whole patch in the time of one pair

    // Without biases.
    static void sums(const uint16_t *query, const uint16_t *keys, ptrdiff_t stride, int32_t count, int32_t steps, float *out) {
        constexpr ptrdiff_t kQueryRow = kLanes * kGroup * sizeof(uint16_t), kScoreRow = kLanes * sizeof(float);
        const ptrdiff_t key_row = stride * static_cast<ptrdiff_t>(sizeof(uint16_t));
        const bool second = count > 16;
        Tiles tiles;
        tiles.clear();
        for (int32_t step = 0; step < steps; step += 16) {
            const uint16_t *q = query + static_cast<ptrdiff_t>(step) * kLanes * kGroup, *k = keys + step * kGroup;
            tiles.load_query0(q, kQueryRow);
            tiles.load_query1(q + 16 * kGroup, kQueryRow);
            tiles.load_keys0(k, key_row);
            tiles.multiply00();
            tiles.multiply01();
            if (second) {
                tiles.load_keys1(k + 16 * stride, key_row);
                tiles.multiply10();
                tiles.multiply11();
            }
        }
        tiles.store00(out, kScoreRow);
        tiles.store01(out + 16, kScoreRow);
        if (second) {
            tiles.store10(out + 16 * kLanes, kScoreRow);
            tiles.store11(out + 16 * kLanes + 16, kScoreRow);
        }
    }

    static void scores(const uint16_t *query, const uint16_t *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       float *out) {
        sums(query, keys, stride, count, steps, out);
        for (int32_t j = 0; j < count; ++j) {
            const float bias = bias_after(keys + j * stride + steps * kGroup);
            for (int32_t lane = 0; lane < kLanes; ++lane) out[j * kLanes + lane] += bias;
        }
    }

    static void screen(const uint16_t *query, const uint16_t *keys, ptrdiff_t stride, int32_t count, int32_t steps,
                       const float *limits, uint32_t *hits) {
        alignas(64) float bounds[kKeys * kLanes];
        sums(query, keys, stride, count, steps, bounds);
        for (int32_t j = 0; j < count; ++j)
            hits[j] = Compare::not_less(bounds + j * kLanes, bias_after(keys + j * stride + steps * kGroup), limits);
    }

    static uint32_t at_least(const float *scores, const float *thresholds) {
        return Compare::at_least(scores, thresholds);
    }
};

}  // namespace
}  // namespace vosrt
