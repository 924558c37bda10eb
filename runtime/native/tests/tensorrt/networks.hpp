// For tests alone: networks that are written down in a few lines, which the stand-in for TensorRT runs, and tests on the host.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace fake {

inline constexpr int64_t kMaps = 4;  // channels of the encoder's maps

// Mean colours per cell, of unit length, in the first 4 of `channels`; the maps, f32 [kMaps, rows, columns] of cells of 8 and of 4 pixels,
// are such means in units of 255. They may be nullptr.
inline void encode(int64_t height, int64_t width, int64_t channels, const uint8_t *bgr, float *embedding, float *res3, float *res2) {
    const auto sums = [&](int64_t top, int64_t left, int64_t side) {
        std::array<float, 4> sum{0.0f, 0.0f, 0.0f, 1.0f};
        for (int64_t y = top; y < top + side && y < height; ++y)
            for (int64_t x = left; x < left + side && x < width; ++x)
                for (int64_t c = 0; c < 3; ++c) sum[static_cast<size_t>(c)] += bgr[(y * width + x) * 3 + c];
        return sum;
    };
    for (int64_t top = 0; top < height; top += 8)
        for (int64_t left = 0; left < width; left += 8, embedding += channels) {
            const auto sum = sums(top, left, 8);
            float square = 1.0f;
            for (size_t c = 0; c < 3; ++c) square += sum[c] * sum[c];
            for (int64_t c = 0; c < channels; ++c) embedding[c] = c < 4 ? sum[static_cast<size_t>(c)] / std::sqrt(square) : 0.0f;
        }
    for (const auto &[map, side] : {std::pair{res3, int64_t{8}}, std::pair{res2, int64_t{4}}}) {
        if (map == nullptr) continue;
        const int64_t rows = (height + side - 1) / side, columns = (width + side - 1) / side;
        for (int64_t cell = 0; cell < rows * columns; ++cell) {
            const auto sum = sums(cell / columns * side, cell % columns * side, side);
            for (int64_t c = 0; c < kMaps; ++c)
                map[c * rows * columns + cell] = sum[static_cast<size_t>(c)] / static_cast<float>(255 * side * side);
        }
    }
}

struct Masks {
    int64_t objects, height, width, channels;  // of frames; of values in decode
};

// Values: the share of a cell that an object covers; its share of red; the context. The rest is zero.
inline void encode_masks(const Masks &of, const uint8_t *bgr, const float *masks, const float *context, float *values) {
    const int64_t rows = (of.height + 7) / 8, columns = (of.width + 7) / 8;
    for (int64_t m = 0; m < of.objects; ++m)
        for (int64_t cell = 0; cell < rows * columns; ++cell, values += of.channels) {
            float covered = 0.0f, red = 0.0f;
            for (int64_t y = cell / columns * 8; y < cell / columns * 8 + 8 && y < of.height; ++y)
                for (int64_t x = cell % columns * 8; x < cell % columns * 8 + 8 && x < of.width; ++x) {
                    const float mask = masks[(m * of.height + y) * of.width + x];
                    covered += mask / 64.0f;
                    red += mask * static_cast<float>(bgr[(y * of.width + x) * 3 + 2]) / 16320.0f;
                }
            for (int64_t c = 0; c < of.channels; ++c)
                values[c] = c == 0 ? covered : c == 1      ? red
                                           : c < 2 + kMaps ? context[(c - 2) * rows * columns + cell]
                                                           : 0.0f;
        }
}

// Logits: what was read and what is there say where an object is; the maps, how sure that is.
inline void decode(const Masks &of, int64_t rows, int64_t columns, const float *readout, const float *values, const float *res3,
                   const float *res2, float *logits) {
    for (int64_t m = 0; m < of.objects; ++m)
        for (int64_t y = 0; y < rows; ++y)
            for (int64_t x = 0; x < columns; ++x) {
                const int64_t cell = y / 2 * of.width + x / 2, at = (m * of.height * of.width + cell) * of.channels;
                const float sure = 1.0f + res3[2 * of.height * of.width + cell] + res2[2 * rows * columns + y * columns + x];
                *logits++ = sure * (2.0f * readout[at] + values[at] + values[at + 1] - 1.5f);
            }
}

}  // namespace fake
