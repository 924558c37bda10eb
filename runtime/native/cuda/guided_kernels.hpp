// Guided output on the GPU: soft masks that follow the edges of the picture, as src/guided.cpp computes them on the processor.
// Sums over windows are separable and taken term by term in that order, so that both give the same bits; running sums would leave
// rests where there is no object. Here the whole frame is computed: around the objects alone would need their place on the host.
// `Thread` as in match_tile.hpp.
#pragma once

#include "../src/guided_pixel.hpp"
#include "mask_kernels.hpp"

namespace vosrt::cuda {

struct alignas(16) FourPlanes {
    float of[guided::kPlanes];
};

constexpr int32_t kGuidedAtOnce = 8;  // channels of one launch, so that room does not grow with all objects

struct GuidedParams {
    NewestMasks masks;
    bool align_corners;
    int32_t radius;
    Grid size;                    // of the guide
    const uint8_t *pixels;        // u8 [height, width, 3]
    int32_t *products;            // [9][height * width]: sums over columns
    float *inverse;               // [9][height * width]: mean of I, then the inverse
    FourPlanes *masked, *fitted;  // [kGuidedAtOnce][height * width]: sums over columns
    int32_t first;                // channel of job 0
    float *out;                   // planes [count][height * width]

    VOSRT_BOTH float share(int32_t y, int32_t x) const {
        return guided::share_of_window(y, radius, size.height) * guided::share_of_window(x, radius, size.width);
    }
};

// ---- what depends on the picture alone -----------------------------------------------------------------------

// A thread per pixel.
template <class Thread>
VOSRT_KERNEL void sum_products(Thread &t, const GuidedParams &p) {
    const int32_t pixels = p.size.cells();
    for (int32_t i = t.block() * t.threads() + t.thread(); i < pixels; i += t.blocks() * t.threads()) {
        const int32_t x = i % p.size.width, last = smaller(x + p.radius, p.size.width - 1);
        int32_t sums[guided::kProducts] = {};
        for (int32_t near = larger(x - p.radius, 0); near <= last; ++near) {
            int32_t products[guided::kProducts];
            guided::products_of(p.pixels + 3 * static_cast<size_t>(i - x + near), products);
            for (int32_t n = 0; n < guided::kProducts; ++n) sums[n] += products[n];
        }
        for (int32_t n = 0; n < guided::kProducts; ++n) p.products[static_cast<size_t>(n) * pixels + i] = sums[n];
    }
}

// A thread per pixel.
template <class Thread>
VOSRT_KERNEL void invert_windows(Thread &t, const GuidedParams &p) {
    const int32_t pixels = p.size.cells(), width = p.size.width;
    for (int32_t i = t.block() * t.threads() + t.thread(); i < pixels; i += t.blocks() * t.threads()) {
        const int32_t y = i / width, x = i % width, last = smaller(y + p.radius, p.size.height - 1);
        int32_t sums[guided::kProducts] = {};
        for (int32_t near = larger(y - p.radius, 0); near <= last; ++near)
            for (int32_t n = 0; n < guided::kProducts; ++n) sums[n] += p.products[static_cast<size_t>(n) * pixels + near * width + x];
        const double share = static_cast<double>(guided::share_of_window(y, p.radius, p.size.height)) *
                             guided::share_of_window(x, p.radius, width);
        float out[3 + guided::kInverse];
        guided::invert(sums, share, out, out + 3);
        for (int32_t n = 0; n < 3 + guided::kInverse; ++n) p.inverse[static_cast<size_t>(n) * pixels + i] = out[n];
    }
}

// ---- each channel --------------------------------------------------------------------------------------------

// p and I p of a pixel: the channel, brought to the size of the guide.
VOSRT_BOTH inline FourPlanes mask_pixel(const GuidedParams &p, const SoftView &soft, int32_t n, int32_t y, int32_t x) {
    const int32_t i = y * p.size.width + x;
    const Spot spot = p.align_corners ? corners_spot(soft.grid, i, p.size) : half_pixel_spot(soft.grid, i, p.size);
    const auto at = [&](int32_t corner) {
        return guided::filtered(soft.values[spot.corners[corner] * soft.cell_stride + soft.channels[n]], n == 0);
    };
    const float left = (1 - spot.down) * at(0) + spot.down * at(2), right = (1 - spot.down) * at(1) + spot.down * at(3);
    const float value = (1 - spot.right) * left + spot.right * right;
    const uint8_t *pixel = p.pixels + 3 * static_cast<size_t>(i);
    FourPlanes out{{value}};
    for (int32_t a = 0; a < 3; ++a) out.of[1 + a] = value * (static_cast<float>(pixel[a]) * guided::kColour);
    return out;
}

// Sums over rows of what was summed over columns, around pixel y, x.
VOSRT_BOTH inline FourPlanes sum_of_column(const GuidedParams &p, const FourPlanes *planes, int32_t y, int32_t x) {
    const int32_t first = larger(y - p.radius, 0), last = smaller(y + p.radius, p.size.height - 1);
    FourPlanes sum = planes[first * p.size.width + x];
    for (int32_t near = first + 1; near <= last; ++near)
        for (int32_t a = 0; a < guided::kPlanes; ++a) sum.of[a] += planes[near * p.size.width + x].of[a];
    return sum;
}

// out = sums over columns of `value`(y, x). A block per piece of a row; each value is computed once a block, into shared memory.
template <class Thread, class Value>
VOSRT_KERNEL void sum_columns(Thread &t, const GuidedParams &p, const Value &value, FourPlanes *out) {
    auto *piece = reinterpret_cast<FourPlanes *>(t.shared());
    const int32_t pieces = ceil_divide(p.size.width, t.threads());
    const int32_t y = t.block() / pieces, left = t.block() % pieces * t.threads(), x = left + t.thread();
    for (int32_t i = t.thread(); i < t.threads() + 2 * p.radius; i += t.threads()) {
        const int32_t near = left + i - p.radius;
        piece[i] = near < 0 || near >= p.size.width ? FourPlanes{} : value(y, near);
    }
    t.sync();
    if (x >= p.size.width) return;
    FourPlanes sum = piece[t.thread()];
    for (int32_t d = 1; d <= 2 * p.radius; ++d)
        for (int32_t a = 0; a < guided::kPlanes; ++a) sum.of[a] += piece[t.thread() + d].of[a];
    out[y * p.size.width + x] = sum;
}

template <class Thread>
VOSRT_KERNEL void sum_masks(Thread &t, const GuidedParams &p) {
    const SoftView soft = p.masks.view();
    const auto value = [&](int32_t y, int32_t x) { return mask_pixel(p, soft, p.first + t.job(), y, x); };
    sum_columns(t, p, value, p.masked + static_cast<size_t>(t.job()) * p.size.cells());
}

template <class Thread>
VOSRT_KERNEL void fit_masks(Thread &t, const GuidedParams &p) {
    const int32_t pixels = p.size.cells();
    const FourPlanes *masked = p.masked + static_cast<size_t>(t.job()) * pixels;
    const auto value = [&](int32_t y, int32_t x) {
        float inverse[3 + guided::kInverse];
        for (int32_t n = 0; n < 3 + guided::kInverse; ++n)
            inverse[n] = p.inverse[static_cast<size_t>(n) * pixels + y * p.size.width + x];
        FourPlanes out;
        guided::fit(sum_of_column(p, masked, y, x).of, p.share(y, x), inverse, inverse + 3, out.of);
        return out;
    };
    sum_columns(t, p, value, p.fitted + static_cast<size_t>(t.job()) * pixels);
}

// A thread per pixel and channel.
template <class Thread>
VOSRT_KERNEL void show_masks(Thread &t, const GuidedParams &p) {
    const int32_t pixels = p.size.cells(), n = p.first + t.job();
    const FourPlanes *fitted = p.fitted + static_cast<size_t>(t.job()) * pixels;
    for (int32_t i = t.block() * t.threads() + t.thread(); i < pixels; i += t.blocks() * t.threads()) {
        const int32_t y = i / p.size.width, x = i % p.size.width;
        const uint8_t *pixel = p.pixels + 3 * static_cast<size_t>(i);
        const auto colour = [&](int32_t a) { return static_cast<float>(pixel[a]) * guided::kColour; };
        p.out[static_cast<size_t>(n) * pixels + i] =
            guided::show(sum_of_column(p, fitted, y, x).of, p.share(y, x), colour(0), colour(1), colour(2), n == 0);
    }
}

}  // namespace vosrt::cuda
