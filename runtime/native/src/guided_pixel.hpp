// What guided output computes for one pixel (He et al. 2013). guided.cpp and the CUDA kernels share it, so that both round alike;
// nvcc compiles constexpr functions for GPUs too.
#pragma once

#include <cstdint>

namespace vosrt::guided {

inline constexpr double kEps = 1e-4;     // pictures of a smaller variance count as flat; of colours from 0 to 1
inline constexpr int32_t kProducts = 9;  // I and I I^T of a pixel
inline constexpr int32_t kInverse = 6;   // upper triangle of a symmetric 3 x 3 matrix
inline constexpr int32_t kPlanes = 4;    // p and I p of a pixel, or a and b
inline constexpr float kColour = 1.0f / 255.0f;

// What is filtered of a channel: background as what it is not. Softmax leaves rests that would make every cell an object's.
constexpr float filtered(float soft, bool background) {
    constexpr float kRest = 1e-6f;
    const float value = background ? 1.0f - soft : soft;
    return value > kRest || value < -kRest ? value : 0.0f;
}

// The share of one pixel in the mean over its window, along an axis of `size` pixels.
constexpr float share_of_window(int32_t i, int32_t radius, int32_t size) {
    const int32_t first = i > radius ? i - radius : 0, last = i + radius < size - 1 ? i + radius : size - 1;
    return 1.0f / static_cast<float>(last - first + 1);
}

// out = I and I I^T of a pixel, B G R.
constexpr void products_of(const uint8_t *pixel, int32_t *out) {
    const int32_t b = pixel[0], g = pixel[1], r = pixel[2];
    out[0] = b, out[1] = g, out[2] = r;
    out[3] = b * b, out[4] = b * g, out[5] = b * r;
    out[6] = g * g, out[7] = g * r, out[8] = r * r;
}

// The mean of I, and (covariance of I + eps)^-1 by its cofactors, from sums over a window.
constexpr void invert(const int32_t *sums, double window_share, float *mean, float *inverse) {
    const double share = window_share / 255.0, unit = share / 255.0;
    const double b = sums[0] * share, g = sums[1] * share, r = sums[2] * share;
    const double bb = sums[3] * unit - b * b + kEps, bg = sums[4] * unit - b * g, br = sums[5] * unit - b * r;
    const double gg = sums[6] * unit - g * g + kEps, gr = sums[7] * unit - g * r, rr = sums[8] * unit - r * r + kEps;
    const double c0 = gg * rr - gr * gr, c1 = br * gr - bg * rr, c2 = bg * gr - br * gg;
    const double scale = 1.0 / (bb * c0 + bg * c1 + br * c2);
    const double cofactors[kInverse] = {c0, c1, c2, bb * rr - br * br, bg * br - bb * gr, bb * gg - bg * bg};
    for (int32_t i = 0; i < kInverse; ++i) inverse[i] = static_cast<float>(cofactors[i] * scale);
    mean[0] = static_cast<float>(b), mean[1] = static_cast<float>(g), mean[2] = static_cast<float>(r);
}

// a = (covariance of I + eps)^-1 covariance of I and p, b = mean of p - a . mean of I (eq. 14 and 15), from sums of p and I p.
constexpr void fit(const float *sums, float share, const float *mean, const float *inverse, float *out) {
    const float p = sums[0] * share;
    const float b = sums[1] * share - mean[0] * p, g = sums[2] * share - mean[1] * p, r = sums[3] * share - mean[2] * p;
    out[0] = inverse[0] * b + inverse[1] * g + inverse[2] * r;
    out[1] = inverse[1] * b + inverse[3] * g + inverse[4] * r;
    out[2] = inverse[2] * b + inverse[4] * g + inverse[5] * r;
    out[3] = p - (out[0] * mean[0] + out[1] * mean[1] + out[2] * mean[2]);
}

// mean of a . I + mean of b (eq. 16), kept within 0 and 1, from sums of a and b; background is what it is not.
constexpr float show(const float *sums, float share, float b, float g, float r, bool background) {
    float q = sums[0] * b + sums[1] * g + sums[2] * r + sums[3];
    q *= share;
    if (background) q = 1.0f - q;
    return q > 0.0f ? (q < 1.0f ? q : 1.0f) : 0.0f;  // what is not a number is 0
}

}  // namespace vosrt::guided
