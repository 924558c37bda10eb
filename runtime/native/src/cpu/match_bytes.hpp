// The first of the bounds in 8-bit integers, of which processors multiply twice as many at a time as of bf16.
//
// Coordinates are rounded to multiples of one step, the same for all keys of a video, and cut off at 127 of them. The bound is that of
// match_bound.hpp, g.h + n(q) n(k): products of rounded heads are whole numbers of step^2, summed up exactly, and n is one more element,
// rounded up. Of an n past 127 steps, the excess x is bounded by the most that any n may be, N: with n' for what is left,
// n(q) n(k) <= n'(q) n'(k) + N x(q) + N x(k). N x and the bias are an offset of the key, and N x is taken off the query's limit. A key or
// query that is not finite, or whose n is more than N, is never screened: an offset that no limit reaches, and a limit below all sums.
//
// Processors multiply unsigned by signed bytes: those of keys are stored 128 up, and what that adds is a constant of the query.
#pragma once

#include <cmath>
#include <cstring>

#include "../bound.hpp"
#include "match.hpp"

namespace vosrt {
namespace {

struct ByteHead {
    // A short head is [0, kShort): coordinates, then what is left of the key. All of it takes the coordinates of the short one, and has
    // what is left at the end; queries have a zero in the place of the other one.
    static constexpr int32_t kShort = 16, kAll = 32, kShortRest = kShort - 1, kAllRest = kAll - 1;
    static constexpr int32_t kNever = 1 << 30, kMostLimit = 1 << 29;  // an offset, and the highest limit

    uint8_t elements[kAll];
    int32_t offset[2];  // of a short head and of all; in step^2
    float loss[2];      // N x

    // `coordinates` are `apart` from each other, of as many axes as a head has elements.
    static void write(const float *coordinates, int32_t apart, float square, float bias, float slack, ByteScale scale, std::byte *out) {
        ByteHead row;
        const bool finite = square <= bound::kLargest && std::fabs(bias) <= bound::kLargest;
        float along = 0.0f, kept = 0.0f, error = 0.0f;
        for (int32_t i = 0; i < kAll; ++i) {
            if (i != kShortRest && i != kAllRest) {
                const float exact = finite ? *coordinates : 0.0f;
                coordinates += apart;
                float steps = std::nearbyint(exact / scale.step);
                if (steps > 127.0f) steps = 127.0f;
                if (steps < -127.0f) steps = -127.0f;
                const float rounded = scale.step * steps;
                along += exact * rounded;
                kept += rounded * rounded;
                error += (exact - rounded) * (exact - rounded);
                row.elements[i] = static_cast<uint8_t>(static_cast<int32_t>(steps) + 128);
                continue;
            }
            const int32_t which = i == kAllRest;
            const float rest = bound::kRaise * std::sqrt(bound::rest_square(square, along, kept, error, scale.balance, slack));
            const float elements = std::ceil(rest / scale.step);
            const float loss = elements > 127.0f ? bound::kRaise * scale.most * (rest - 127.0f * scale.step) : 0.0f;
            const float per_step = 1.0f / (scale.step * scale.step);
            const float offset = (bias + slack * std::fabs(bias) + loss + 0x1p-20f * (std::fabs(bias) + loss)) * per_step;
            // False where something is NaN.
            const bool fits = finite && rest <= scale.most && std::fabs(offset) < 0x1p27f;
            row.elements[i] = static_cast<uint8_t>(fits ? 128 + static_cast<int32_t>(elements < 127.0f ? elements : 127.0f) : 128);
            row.offset[which] = fits ? static_cast<int32_t>(std::ceil(offset)) + 1 : kNever;
            row.loss[which] = fits ? loss : INFINITY;
        }
        std::memcpy(out, &row, sizeof row);
    }
};

// Queries of a patch in the order that products take them, 4 bytes at a time.
template <int32_t kLanes>
struct ByteQueries {
    struct Packed {
        alignas(64) int32_t elements[ByteHead::kAll / 4][kLanes];
        alignas(64) int32_t raised[kLanes];  // what keys that are stored 128 up add
        alignas(64) float loss[kLanes];
    };
    Packed packed[2];  // short heads, and all

    void place(int32_t lane, const std::byte *from) {
        ByteHead row;
        std::memcpy(&row, from, sizeof row);
        for (int32_t which = 0; which < 2; ++which) {
            int8_t elements[ByteHead::kAll];
            int32_t sum = 0;
            for (int32_t i = 0; i < ByteHead::kAll; ++i) {
                const bool taken = which == 0 ? i < ByteHead::kShort : i != ByteHead::kShortRest;
                elements[i] = static_cast<int8_t>(taken ? row.elements[i] - 128 : 0);
                sum += elements[i];
            }
            for (int32_t step = 0; step < ByteHead::kAll / 4; ++step)
                std::memcpy(&packed[which].elements[step][lane], elements + 4 * step, 4);
            packed[which].raised[lane] = 128 * sum;
            packed[which].loss[lane] = row.loss[which];
        }
    }

    // The least sums that reach limits: rounded down by more than the arithmetic here is off.
    void set_limits(int32_t which, const float *limits, ByteScale scale, int32_t *out) const {
        const float per_step = 1.0f / (scale.step * scale.step);
        for (int32_t lane = 0; lane < kLanes; ++lane) {
            const float loss = packed[which].loss[lane], rounding = 0x1p-20f * (std::fabs(limits[lane]) + loss);
            float least = (limits[lane] - loss - rounding) * per_step - 3.0f;
            if (!(least > -ByteHead::kMostLimit)) least = -ByteHead::kMostLimit;  // if it is NaN, too
            if (least > ByteHead::kMostLimit) least = ByteHead::kMostLimit;
            out[lane] = static_cast<int32_t>(least) + packed[which].raised[lane];
        }
    }
};

struct Survivor {
    int32_t cell;
    uint32_t lanes;
};

}  // namespace
}  // namespace vosrt
