// Soft masks at the size of pixels: brought there, refined by what a decoder says, brought back, and made labels. All resizing is
// bilinear; pixel centres are at half-integers but where labels are read from a memory whose corners are aligned.
// `Thread` as in match_tile.hpp. Loops have strides so that any grid fits.
//
// In the memory, a cell's channels lie beside each other, in any order. Planes are what networks take and give: one
// after the other, the background first, then the objects by ascending id.
#pragma once

#include "geometry.hpp"
#include "plan.hpp"

namespace vosrt::cuda {

// The four cells around a point.
struct Spot {
    int32_t corners[4];  // upper left, upper right, lower left, lower right
    float down, right;   // weights of the second of each pair
};
VOSRT_BOTH inline Spot spot_of(const Grid &grid, const Tap &y, const Tap &x) {
    const int32_t above = y.first * grid.width, below = y.second * grid.width;
    return {{above + x.first, above + x.second, below + x.first, below + x.second}, y.weight, x.weight};
}
// Pixel i of an image of some size.
VOSRT_BOTH inline Spot half_pixel_spot(const Grid &grid, int32_t i, const Grid &size) {
    return spot_of(grid, half_pixel_tap(i / size.width, grid.height, size.height),
                   half_pixel_tap(i % size.width, grid.width, size.width));
}
VOSRT_BOTH inline Spot corners_spot(const Grid &grid, int32_t i, const Grid &size) {
    return spot_of(grid, corners_tap(i / size.width, grid.height, size.height), corners_tap(i % size.width, grid.width, size.width));
}

// Channels of one frame, as planes or as the memory has them.
struct SoftView {
    Grid grid;
    const float *values;
    int32_t cell_stride, channel_stride;
    const int32_t *channels;  // of the n-th channel asked for; nullptr: n itself

    VOSRT_BOTH float at(const Spot &spot, int32_t n) const {
        const float *from = values + static_cast<size_t>(channels == nullptr ? n : channels[n]) * channel_stride;
        const float above = (1 - spot.right) * from[spot.corners[0] * cell_stride] + spot.right * from[spot.corners[1] * cell_stride];
        const float below = (1 - spot.right) * from[spot.corners[2] * cell_stride] + spot.right * from[spot.corners[3] * cell_stride];
        return (1 - spot.down) * above + spot.down * below;
    }
};

VOSRT_BOTH inline SoftView view_of_planes(const Grid &size, const float *values) {
    return {size, values, 1, size.cells(), nullptr};
}

// Where planes f32 [channels, height, width] are written.
struct Planes {
    Grid size;
    float *values;
};

// The soft masks of the newest frame in the memory.
struct NewestMasks {
    Grid grid;      // of the parts of cells
    int32_t parts;  // of a cell, to a side
    int32_t context, capacity, count;
    const int64_t *now;
    float *ring_soft;         // f32 [context + 1][grid.cells()][capacity]
    const int32_t *channels;  // [count]: the background, then the objects by ascending id

    VOSRT_BOTH float *values() const {
        return ring_soft + static_cast<size_t>(ring_slot(*now, context)) * grid.cells() * capacity;
    }
    VOSRT_BOTH SoftView view() const { return {grid, values(), capacity, 1, channels}; }
    VOSRT_BOTH Grid cells() const { return {grid.height / parts, grid.width / parts}; }

    // Calls body(soft masks of a part) for the parts of a cell in a frame.
    template <class Body>
    VOSRT_BOTH void for_each_part(float *frame, int32_t cell, const Body &body) const {
        float *first = frame + static_cast<size_t>(first_part(cell, grid.width / parts, parts)) * capacity;
        for (int32_t y = 0; y < parts; ++y)
            for (int32_t x = 0; x < parts; ++x) body(first + (static_cast<size_t>(y) * grid.width + x) * capacity);
    }
    // The mean over the parts of a cell in a frame.
    VOSRT_BOTH float mean(const float *frame, int32_t cell, int32_t channel) const {
        float sum = 0.0f;
        for_each_part(const_cast<float *>(frame), cell, [&](const float *soft) { sum += soft[channel]; });
        return sum / static_cast<float>(parts * parts);
    }
};

// ---- to pixels and back --------------------------------------------------------------------------------------

// A thread per pixel: neighbours write beside each other, plane by plane.
template <class Thread>
VOSRT_KERNEL void draw_planes(Thread &t, const NewestMasks &masks, const Planes &out) {
    const SoftView soft = masks.view();
    const int32_t pixels = out.size.cells();
    for (int32_t i = t.block() * t.threads() + t.thread(); i < pixels; i += t.blocks() * t.threads()) {
        const Spot spot = half_pixel_spot(masks.grid, i, out.size);
        for (int32_t n = 0; n < masks.count; ++n) out.values[static_cast<size_t>(n) * pixels + i] = soft.at(spot, n);
    }
}

// Planes become the newest frame's soft masks. A thread per part.
template <class Thread>
VOSRT_KERNEL void keep_planes(Thread &t, const NewestMasks &masks, const SoftView &planes) {
    float *out = masks.values();
    for (int32_t cell = t.block() * t.threads() + t.thread(); cell < masks.grid.cells(); cell += t.blocks() * t.threads()) {
        const Spot spot = half_pixel_spot(planes.grid, cell, masks.grid);
        for (int32_t n = 0; n < masks.count; ++n)
            out[static_cast<size_t>(cell) * masks.capacity + masks.channels[n]] = planes.at(spot, n);
    }
}

struct SettleParams {
    NewestMasks masks;
    const ReferenceEntry *references;  // oldest first
    int32_t count;                     // of references, at least one
    float sharpness;
    const float *biases;  // f32 [256]: of a channel's object, the logarithm of its factor
};

// Divides the masks of a part by the largest one, so that what they are multiplied by makes none overflow.
VOSRT_BOTH inline void divide_by_largest(const NewestMasks &masks, float *soft) {
    float largest = 0.0f;
    for (int32_t n = 0; n < masks.count; ++n) {
        const float value = soft[masks.channels[n]];
        largest = value > largest ? value : largest;
    }
    for (int32_t n = 0; largest != 0.0f && n < masks.count; ++n) soft[masks.channels[n]] /= largest;
}
// Makes their sum 1. A part without masks keeps that.
VOSRT_BOTH inline void divide_by_sum(const NewestMasks &masks, float *soft) {
    float total = 0.0f;
    for (int32_t n = 0; n < masks.count; ++n) total += soft[masks.channels[n]];
    for (int32_t n = 0; total != 0.0f && n < masks.count; ++n) soft[masks.channels[n]] /= total;
}

// reference.sharpen: what is remembered of the newest frame once another one comes, unless it was annotated. A thread per part.
template <class Thread>
VOSRT_KERNEL void settle_masks(Thread &t, const SettleParams &p) {
    if (p.references[p.count - 1].frame == *p.masks.now) return;
    for (int32_t part = t.block() * t.threads() + t.thread(); part < p.masks.grid.cells(); part += t.blocks() * t.threads()) {
        float *soft = p.masks.values() + static_cast<size_t>(part) * p.masks.capacity;
        divide_by_largest(p.masks, soft);
        for (int32_t n = 0; n < p.masks.count; ++n) {
            float &value = soft[p.masks.channels[n]];
            value = powf(value, p.sharpness) * (n == 0 ? 1.0f : expf(p.biases[p.masks.channels[n]]));
        }
        divide_by_sum(p.masks, soft);
    }
}

// ---- refinement ----------------------------------------------------------------------------------------------

struct RefineParams {
    NewestMasks coarse;  // what was propagated
    SoftView logits;     // one plane per object
    bool residual;       // logits correct what was propagated, instead of drawing masks from nothing
    Planes out;          // count planes of sum 1
};

// One pixel of `count` planes.
struct PixelOfPlanes {
    float *first;
    int32_t pixels, count;

    VOSRT_BOTH float &operator[](int32_t n) const { return first[static_cast<size_t>(n) * pixels]; }
    VOSRT_BOTH void divide(float total) const {
        for (int32_t n = 0; n < count; ++n) (*this)[n] /= total;
    }
};

// reference.correct: softmax over log(coarse) + logit, where a coarse mask is at least 0.01 and the background's logit 0.
VOSRT_BOTH inline void correct(const SoftView &coarse, const Spot &spot, const SoftView &logits, const Spot &logit_spot,
                               const PixelOfPlanes &out) {
    float largest = 0.0f, total = 0.0f;
    for (int32_t n = 1; n < out.count; ++n) {
        const float logit = logits.at(logit_spot, n - 1);
        out[n] = logit;
        largest = logit > largest ? logit : largest;
    }
    for (int32_t n = 0; n < out.count; ++n) {
        const float soft = coarse.at(spot, n);
        out[n] = (soft > 0.01f ? soft : 0.01f) * expf((n == 0 ? 0.0f : out[n]) - largest);
        total += out[n];
    }
    out.divide(total);
}

// p / (1 - p), p clamped to [1e-7, 1 - 1e-7].
VOSRT_BOTH inline float odds(float p) {
    constexpr float kLeast = 1e-7f, kMost = 1.0f - kLeast;
    p = p < kLeast ? kLeast : p > kMost ? kMost
                                        : p;
    return p / (1.0f - p);
}

// reference.aggregate: weighted by odds, the background's probability being that of no object.
VOSRT_BOTH inline void aggregate(const SoftView &logits, const Spot &spot, const PixelOfPlanes &out) {
    float none = 1.0f;
    for (int32_t n = 1; n < out.count; ++n) {
        const float logit = logits.at(spot, n - 1);
        const float p = 1.0f / (1.0f + expf(-(logit < -80.0f ? -80.0f : logit > 80.0f ? 80.0f
                                                                                      : logit)));
        none *= 1.0f - p;
        out[n] = odds(p);
    }
    out[0] = odds(none);
    float total = 0.0f;
    for (int32_t n = 0; n < out.count; ++n) total += out[n];
    out.divide(total);
}

// Refined masks of the newest frame. A thread per pixel, which uses its place in the planes as scratch.
template <class Thread>
VOSRT_KERNEL void refine_pixels(Thread &t, const RefineParams &p) {
    const SoftView coarse = p.coarse.view();
    const int32_t pixels = p.out.size.cells();
    for (int32_t i = t.block() * t.threads() + t.thread(); i < pixels; i += t.blocks() * t.threads()) {
        const PixelOfPlanes out{p.out.values + i, pixels, p.coarse.count};
        const Spot logit_spot = half_pixel_spot(p.logits.grid, i, p.out.size);
        if (p.residual)
            correct(coarse, half_pixel_spot(coarse.grid, i, p.out.size), p.logits, logit_spot, out);
        else
            aggregate(p.logits, logit_spot, out);
    }
}

// ---- labels --------------------------------------------------------------------------------------------------

constexpr float kConfidenceUnit = 1 << 20;         // sums of confidence are integers, so that their order does not matter
constexpr int32_t kMostLabelledPixels = 15 * 256;  // of a block: their confidence, at most 1 each, is below 2^32 units

struct LabelParams {
    NewestMasks masks;   // in tie-breaking order
    SoftView planes;     // labelled in their place, unless its values are nullptr
    bool align_corners;  // of the masks; planes have half-pixel centres
    Grid size;
    const uint8_t *ids;  // [count]
    uint8_t *labels;     // [height, width]
    float *confidence;   // [height, width] or nullptr
    uint64_t *totals;    // [256][2]: sum of confidence in units of 1 / kConfidenceUnit, and pixels, per label; or nullptr
};

// The largest channel wins, the first of equals.
template <class Thread>
VOSRT_KERNEL void label_pixels(Thread &t, const LabelParams &p) {
    // 32 bits suffice for kMostLabelledPixels of a block; 64-bit sums in shared memory would be loops of compare-and-swap.
    auto *sums = reinterpret_cast<uint32_t *>(t.shared());
    if (p.totals != nullptr) {
        for (int32_t i = t.thread(); i < 512; i += t.threads()) sums[i] = 0;
        t.sync();
    }
    const SoftView soft = p.planes.values == nullptr ? p.masks.view() : p.planes;
    const bool align_corners = p.align_corners && p.planes.values == nullptr;
    for (int32_t i = t.block() * t.threads() + t.thread(); i < p.size.cells(); i += t.blocks() * t.threads()) {
        const Spot spot = align_corners ? corners_spot(soft.grid, i, p.size) : half_pixel_spot(soft.grid, i, p.size);
        float best = soft.at(spot, 0);
        int32_t winner = 0;
        for (int32_t n = 1; n < p.masks.count; ++n) {
            const float value = soft.at(spot, n);
            if (value > best) {
                best = value;
                winner = n;
            }
        }
        p.labels[i] = p.ids[winner];
        if (p.confidence != nullptr) p.confidence[i] = best;
        if (p.totals != nullptr) {
            t.add(sums + 2 * p.ids[winner], static_cast<uint32_t>(best * kConfidenceUnit));
            t.add(sums + 2 * p.ids[winner] + 1, 1u);
        }
    }
    if (p.totals != nullptr) {
        t.sync();
        for (int32_t i = t.thread(); i < 512; i += t.threads())
            if (sums[i] != 0) t.add(p.totals + i, static_cast<uint64_t>(sums[i]));
    }
}

}  // namespace vosrt::cuda
