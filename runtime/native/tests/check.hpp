// The little that these tests need: checks that stay in release builds and name what failed.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "vosrt.hpp"

#define CHECK(condition)                                                                                   \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            std::fprintf(stderr, "%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
                         vosrt_last_error());                                                              \
            std::exit(1);                                                                                  \
        }                                                                                                  \
    } while (0)

// Random unit vectors, f32 [cells, channels]; neighbouring calls with the same `base` resemble each other.
inline std::vector<float> random_embedding(std::mt19937 &random, int cells, int channels,
                                           const std::vector<float> *base = nullptr) {
    std::normal_distribution<float> normal;
    std::vector<float> out(static_cast<size_t>(cells) * channels);
    for (int cell = 0; cell < cells; ++cell) {
        float *row = out.data() + static_cast<size_t>(cell) * channels;
        double square = 0;
        for (int c = 0; c < channels; ++c) {
            row[c] = normal(random) * (base ? 0.5f : 1.0f);
            if (base) row[c] += (*base)[static_cast<size_t>(cell) * channels + c] * std::sqrt(static_cast<float>(channels));
            square += static_cast<double>(row[c]) * row[c];
        }
        for (int c = 0; c < channels; ++c) row[c] = static_cast<float>(row[c] / std::sqrt(square));
    }
    return out;
}

// A short video and how it is followed.
struct Scenario {
    int height, width, channels, context, top_k;
    float radius;
    int pad_context, align_corners = 1;
    const char *gpu = "";  // see device_emulated.cpp

    vosrt_memory_options options(int isa, int threads = 0) const {
        vosrt_memory_options options = vosrt::memory_options();
        options.height = height;
        options.width = width;
        options.channels = channels;
        options.context = context;
        options.top_k = top_k;
        options.radius = radius;
        options.pad_context = pad_context;
        options.align_corners = align_corners;
        options.isa = isa;
        options.threads = threads;
        return options;
    }
};
