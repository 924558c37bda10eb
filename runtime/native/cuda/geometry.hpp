// Patches of queries, the cells around them, and where a key of a tile lies in shared memory.
#pragma once

#include "platform.hpp"

namespace vosrt::cuda {

struct Grid {
    int32_t height, width;
    VOSRT_BOTH int32_t cells() const { return height * width; }
};

// The first part of a cell on a grid of parts x parts for each; those of a row lie beside each other. As MemoryOptions::first_part.
VOSRT_BOTH inline int32_t first_part(int32_t cell, int32_t width, int32_t parts) {
    return (cell / width * parts * width + cell % width) * parts;
}

// Row and column of a cell in one word, so that neither takes a division; -1 = none.
using Site = int32_t;
constexpr int32_t kMaxSide = 32767;
VOSRT_BOTH inline Site site_at(int32_t y, int32_t x) { return y << 16 | x; }
VOSRT_BOTH inline Site site_of(int32_t cell, const Grid &grid) { return site_at(cell / grid.width, cell % grid.width); }
VOSRT_BOTH inline int32_t row_of(Site site) { return site >> 16; }
VOSRT_BOTH inline int32_t column_of(Site site) { return site & 0xffff; }
VOSRT_BOTH inline int32_t cell_of(Site site, const Grid &grid) { return row_of(site) * grid.width + column_of(site); }

// The neighbourhood within which recent frames are attended.
struct Window {
    int32_t reach;              // rows and columns
    const int32_t *half_width;  // [reach + 1]: columns attended to either side, by row distance; -1 = none

    VOSRT_BOTH bool holds(int32_t dy, int32_t dx) const {
        const int32_t rows = dy < 0 ? -dy : dy, columns = dx < 0 ? -dx : dx;
        return rows <= reach && columns <= half_width[rows];
    }
};

// A rectangle of queries that one block matches: kWidth x kHeight cells, cut off at the border of the grid.
template <int kWidth, int kHeight>
struct Patch {
    int32_t x, y;

    VOSRT_BOTH static int32_t across(const Grid &grid) { return ceil_divide(grid.width, kWidth); }
    VOSRT_BOTH static int32_t count(const Grid &grid) { return across(grid) * ceil_divide(grid.height, kHeight); }
    VOSRT_BOTH static Patch at(const Grid &grid, int32_t index) {
        return {index % across(grid) * kWidth, index / across(grid) * kHeight};
    }
    VOSRT_BOTH int32_t query_x(int32_t row) const { return x + row % kWidth; }
    VOSRT_BOTH int32_t query_y(int32_t row) const { return y + row / kWidth; }
    // Cell of a query, -1 outside the grid.
    VOSRT_BOTH int32_t cell(const Grid &grid, int32_t row) const {
        return query_x(row) < grid.width && query_y(row) < grid.height ? query_y(row) * grid.width + query_x(row) : -1;
    }

    // The halo: rows of the grid that some query attends to, and in each of them the columns.
    VOSRT_BOTH int32_t top(const Window &window) const { return larger(0, y - window.reach); }
    VOSRT_BOTH int32_t bottom(const Grid &grid, const Window &window) const {
        return smaller(grid.height, smaller(y + kHeight, grid.height) + window.reach);
    }
    VOSRT_BOTH int32_t most_rows(const Window &window) const { return kHeight + 2 * window.reach; }
    VOSRT_BOTH int32_t half(const Grid &grid, const Window &window, int32_t row) const {
        const int32_t last = smaller(y + kHeight, grid.height) - 1;
        return window.half_width[larger(0, larger(y - row, row - last))];
    }
    VOSRT_BOTH int32_t left(const Grid &grid, const Window &window, int32_t row) const {
        return larger(0, x - half(grid, window, row));
    }
    VOSRT_BOTH int32_t right(const Grid &grid, const Window &window, int32_t row) const {
        return smaller(grid.width, smaller(x + kWidth, grid.width) + half(grid, window, row));
    }
    // Keys before each row of the halo, and behind the last one how many there are.
    VOSRT_BOTH void count_keys(const Grid &grid, const Window &window, int32_t *starts) const {
        int32_t keys = 0;
        for (int32_t row = top(window); row < bottom(grid, window); ++row) {
            starts[row - top(window)] = keys;
            if (half(grid, window, row) >= 0) keys += right(grid, window, row) - left(grid, window, row);
        }
        starts[bottom(grid, window) - top(window)] = keys;
    }
    // The n-th key of the halo.
    VOSRT_BOTH Site key(const Grid &grid, const Window &window, const int32_t *starts, int32_t n) const {
        int32_t low = 0, high = bottom(grid, window) - top(window);
        while (high - low > 1) {
            const int32_t middle = (low + high) / 2;
            (starts[middle] <= n ? low : high) = middle;
        }
        const int32_t row = top(window) + low;
        return site_at(row, left(grid, window, row) + n - starts[low]);
    }
};

// Keys lie in shared memory as tiles of kChunk channels: rows of 64 bytes, of which a quad reads 16 bytes a thread. A warp reads eight
// rows that lie one behind the other, and so touches each bank once a turn.
constexpr int32_t kChunk = 32;  // channels
constexpr int32_t kRowBytes = kChunk * 2;
constexpr int32_t kPieces = kRowBytes / 16;
VOSRT_BOTH inline int32_t tile_offset(int32_t row, int32_t piece) {
    return row * kRowBytes + 16 * piece;
}
// Queries lie as the tensor cores take them: of 16 rows and half a chunk, each thread of a warp has 16 bytes. Where its word `pair` of 4
// lies that a piece of a row has: the words of rows r and r + 8 take turns.
VOSRT_BOTH inline int32_t fragment_offset(int32_t row, int32_t piece, int32_t pair) {
    return row / 16 * 16 * kRowBytes + pair / 2 * 512 + row % 8 * kRowBytes + 16 * piece + 4 * (row / 8 % 2 + pair % 2 * 2);
}
VOSRT_BOTH constexpr int32_t padded_channels(int32_t channels) { return ceil_divide(channels, kChunk) * kChunk; }

// Output i of `outputs` lies `past` / `unit` behind input `first` where pixel centres are at half-integers. As src/resample.cpp.
struct Position {
    int64_t first, past, unit;
};
VOSRT_BOTH inline Position half_pixel_position(int64_t i, int64_t inputs, int64_t outputs) {
    const int64_t unit = 2 * outputs, last = (inputs - 1) * unit, at = (2 * i + 1) * inputs - outputs;
    const int64_t within = at < 0 ? 0 : at > last ? last
                                                  : at;
    return {within / unit, within % unit, unit};
}

// The inputs that output i lies between. As SampleAxis in src/resample.cpp.
struct Tap {
    int32_t first, second;
    float weight;  // of the second
};
VOSRT_BOTH inline Tap half_pixel_tap(int32_t i, int32_t inputs, int32_t outputs) {
    const Position at = half_pixel_position(i, inputs, outputs);
    const auto first = static_cast<int32_t>(at.first);
    return {first, smaller(first + 1, inputs - 1), static_cast<float>(at.past) / static_cast<float>(at.unit)};
}
// Corners aligned.
VOSRT_BOTH inline Tap corners_tap(int32_t i, int32_t inputs, int32_t outputs) {
    const float scale = outputs > 1 ? static_cast<float>(inputs - 1) / static_cast<float>(outputs - 1) : 0.0f;
    const float position = scale * static_cast<float>(i);
    const int32_t first = smaller(static_cast<int32_t>(position), inputs - 1);
    return {first, smaller(first + 1, inputs - 1), position - static_cast<float>(first)};
}

// As half_pixel_tap with 11-bit weights. As HalfPixelAxis in src/resample.cpp.
constexpr int32_t kWeightBits = 11;
struct IntegerTap {
    int32_t first, second, weight;
};
VOSRT_BOTH inline IntegerTap integer_tap(int64_t i, int64_t inputs, int64_t outputs) {
    const Position at = half_pixel_position(i, inputs, outputs);
    return {static_cast<int32_t>(at.first), static_cast<int32_t>(at.first + 1 < inputs ? at.first + 1 : inputs - 1),
            static_cast<int32_t>(((at.past << kWeightBits) + outputs) / at.unit)};
}

}  // namespace vosrt::cuda
