#include "resample.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

#include "error.hpp"

namespace vosrt {
namespace {

constexpr int32_t kWeightBits = 11, kWeightOne = 1 << kWeightBits;

void resample_row(const uint8_t *source, const HalfPixelAxis &axis, int32_t *out) {
    const size_t width = axis.first.size();
    for (size_t x = 0; x < width; ++x) {
        const uint8_t *a = source + 3 * static_cast<ptrdiff_t>(axis.first[x]);
        const uint8_t *b = source + 3 * static_cast<ptrdiff_t>(axis.second[x]);
        const int32_t w = axis.weight[x];
        for (int32_t c = 0; c < 3; ++c) out[3 * x + c] = (kWeightOne - w) * a[c] + w * b[c];
    }
}

}  // namespace

void HalfPixelAxis::set(int64_t inputs, int64_t outputs) {
    first.resize(outputs);
    second.resize(outputs);
    weight.resize(outputs);
    const int64_t denominator = 2 * outputs;
    for (int64_t i = 0; i < outputs; ++i) {
        const int64_t position = std::clamp((2 * i + 1) * inputs - outputs, int64_t{0}, (inputs - 1) * denominator);
        const int64_t at = position / denominator;
        first[i] = static_cast<int32_t>(at);
        second[i] = static_cast<int32_t>(std::min(at + 1, inputs - 1));
        weight[i] = static_cast<int32_t>(((position - at * denominator) * kWeightOne + outputs) / denominator);
    }
}

// The horizontal pass of a source row is kept as long as output rows need it.
const int32_t *FrameScaler::horizontal(const Picture &source, int32_t y, int32_t keep) {
    for (int32_t i = 0; i < 2; ++i)
        if (held_[i] == y) return resampled_[i].data();
    const int32_t i = held_[0] == keep && keep >= 0 ? 1 : 0;
    resample_row(bgr_row(source, y, converted_.data()), columns_, resampled_[i].data());
    held_[i] = y;
    return resampled_[i].data();
}

void FrameScaler::run(const Picture &source, uint8_t *target, int32_t target_height, int32_t target_width,
                      int64_t target_stride) {
    const int32_t sizes[4] = {source.height, source.width, target_height, target_width};
    const size_t row = 3 * static_cast<size_t>(target_width);
    if (!std::equal(sizes, sizes + 4, sizes_)) {
        rows_.set(source.height, target_height);
        columns_.set(source.width, target_width);
        converted_.resize(3 * static_cast<size_t>(source.width));
        for (auto &buffer : resampled_) buffer.resize(row);
        std::copy_n(sizes, 4, sizes_);
    }
    held_[0] = held_[1] = -1;
    const bool same_size = source.height == target_height && source.width == target_width;
    for (int32_t y = 0; y < target_height; ++y) {
        uint8_t *out = target + y * target_stride;
        if (same_size) {
            const uint8_t *in = bgr_row(source, y, out);
            if (in != out) std::copy_n(in, row, out);
            continue;
        }
        const int32_t *above = horizontal(source, rows_.first[y], rows_.second[y]);
        const int32_t *below = horizontal(source, rows_.second[y], rows_.first[y]);
        const int32_t w = rows_.weight[y];
        for (size_t i = 0; i < row; ++i)
            out[i] = static_cast<uint8_t>(
                ((kWeightOne - w) * above[i] + w * below[i] + (1 << (2 * kWeightBits - 1))) >> (2 * kWeightBits));
    }
}

void AlignedAxis::set(int32_t inputs, int32_t outputs) {
    first.resize(outputs);
    second.resize(outputs);
    weight.resize(outputs);
    const float scale = outputs > 1 ? static_cast<float>(inputs - 1) / static_cast<float>(outputs - 1) : 0.0f;
    for (int32_t i = 0; i < outputs; ++i) {
        const float position = scale * static_cast<float>(i);
        const int32_t at = std::min(static_cast<int32_t>(position), inputs - 1);
        first[i] = at;
        second[i] = std::min(at + 1, inputs - 1);
        weight[i] = position - static_cast<float>(at);
    }
}

namespace {

// Nearest of `outputs` grid lines to input i when corners are aligned, halves rounded up, in exact integers.
int64_t nearest(int64_t i, int64_t inputs, int64_t outputs) {
    return inputs > 1 ? (2 * i * (outputs - 1) + (inputs - 1)) / (2 * (inputs - 1)) : 0;
}

// The first object that no cell holds by more than one half, or -1.
int32_t first_lost(const GridMask &grid) {
    const size_t count = grid.ids.size();
    std::vector<float> largest(count, 0.0f);
    for (size_t i = 0; i < grid.soft.size(); ++i) largest[i % count] = std::max(largest[i % count], grid.soft[i]);
    const auto lost = std::find_if(largest.begin(), largest.end(), [](float value) { return value <= 0.5f; });
    return lost == largest.end() ? -1 : static_cast<int32_t>(lost - largest.begin());
}

// Give an object that bilinear sampling lost the cell that holds most of its pixels.
void rescue(GridMask &grid, int32_t channel, const uint8_t *mask, int32_t mask_height, int32_t mask_width,
            int64_t stride, int32_t height, int32_t width, std::vector<bool> &taken) {
    std::vector<int64_t> pixels(static_cast<size_t>(height) * width);
    for (int32_t y = 0; y < mask_height; ++y)
        for (int32_t x = 0; x < mask_width; ++x)
            if (mask[y * stride + x] == grid.ids[channel])
                ++pixels[nearest(y, mask_height, height) * width + nearest(x, mask_width, width)];
    int64_t best = -1;
    for (size_t cell = 0; cell < pixels.size(); ++cell)
        if (!taken[cell] && pixels[cell] > 0 && (best < 0 || pixels[cell] > pixels[best]))
            best = static_cast<int64_t>(cell);
    if (best < 0)
        throw Error(VOSRT_INVALID_MASK,
                    "object " + std::to_string(grid.ids[channel]) + " is too small for a " + std::to_string(height) + " x " +
                        std::to_string(width) + " feature grid that smaller ids already fill; use a larger working size");
    taken[best] = true;
    float *cell = grid.soft.data() + best * static_cast<int64_t>(grid.ids.size());
    std::fill_n(cell, grid.ids.size(), 0.0f);
    cell[channel] = 1.0f;
}

}  // namespace

GridMask resize_mask(const uint8_t *mask, int32_t mask_height, int32_t mask_width, int64_t stride, int32_t height,
                     int32_t width) {
    std::array<bool, 256> present{};
    for (int32_t y = 0; y < mask_height; ++y)
        for (int32_t x = 0; x < mask_width; ++x) present[mask[y * stride + x]] = true;
    GridMask grid;
    std::array<int32_t, 256> channel;
    channel.fill(-1);
    for (int32_t id = 1; id < 256; ++id)
        if (present[id]) {
            channel[id] = static_cast<int32_t>(grid.ids.size());
            grid.ids.push_back(static_cast<uint8_t>(id));
        }
    if (grid.ids.empty())
        throw Error(VOSRT_INVALID_MASK, "the mask marks no object; expected at least one pixel that is not 0");

    const size_t count = grid.ids.size();
    grid.soft.assign(static_cast<size_t>(height) * width * count, 0.0f);
    AlignedAxis rows, columns;
    rows.set(mask_height, height);
    columns.set(mask_width, width);
    for (int32_t y = 0; y < height; ++y) {
        const uint8_t *above = mask + rows.first[y] * stride, *below = mask + rows.second[y] * stride;
        const float wy = rows.weight[y];
        for (int32_t x = 0; x < width; ++x) {
            const int32_t x0 = columns.first[x], x1 = columns.second[x];
            const float wx = columns.weight[x];
            float *cell = grid.soft.data() + (static_cast<size_t>(y) * width + x) * count;
            const uint8_t corners[4] = {above[x0], above[x1], below[x0], below[x1]};
            for (const uint8_t id : corners) {
                if (id == 0) continue;
                const auto is = [id](uint8_t corner) { return corner == id ? 1.0f : 0.0f; };
                cell[channel[id]] = (1 - wy) * ((1 - wx) * is(corners[0]) + wx * is(corners[1])) +
                                    wy * ((1 - wx) * is(corners[2]) + wx * is(corners[3]));
            }
        }
    }
    std::vector<bool> taken(static_cast<size_t>(height) * width, false);
    // A rescue may take another object's only cell, so each one starts the search anew.
    for (int32_t lost; (lost = first_lost(grid)) >= 0;)
        rescue(grid, lost, mask, mask_height, mask_width, stride, height, width, taken);
    return grid;
}

namespace {

// Channels that can win somewhere between four grid cells: those whose largest corner reaches the best smallest one.
// Interpolation stays within its corners up to rounding, which kSlack covers.
int32_t contenders(const LabelTask &task, const float *const corners[4], int32_t *out) {
    constexpr float kSlack = 1.00001f;
    float floor = 0.0f;
    for (int32_t i = 0; i < task.count; ++i) {
        const int32_t c = task.channels[i];
        floor = std::max(floor, std::min(std::min(corners[0][c], corners[1][c]), std::min(corners[2][c], corners[3][c])));
    }
    int32_t count = 0;
    for (int32_t i = 0; i < task.count; ++i) {
        const int32_t c = task.channels[i];
        const float top = std::max(std::max(corners[0][c], corners[1][c]), std::max(corners[2][c], corners[3][c]));
        if (i == 0 ? top * kSlack >= floor : top > 0.0f && top * kSlack >= floor) out[count++] = i;
    }
    if (count == 0) out[count++] = 0;
    return count;
}

}  // namespace

void label_rows(const LabelTask &task, int32_t grid_row) {
    const auto &rows = *task.rows, &columns = *task.columns;
    const auto rows_begin = std::lower_bound(rows.first.begin(), rows.first.end(), grid_row) - rows.first.begin();
    const auto rows_end = std::upper_bound(rows.first.begin(), rows.first.end(), grid_row) - rows.first.begin();
    int32_t list[256];
    for (int32_t x_begin = 0, x_end = 0; rows_begin < rows_end && x_begin < task.out_width; x_begin = x_end) {
        const int32_t x0 = columns.first[x_begin], x1 = columns.second[x_begin];
        while (x_end < task.out_width && columns.first[x_end] == x0) ++x_end;
        const int64_t above = static_cast<int64_t>(grid_row) * task.width;
        const int64_t below = static_cast<int64_t>(rows.second[rows_begin]) * task.width;
        const float *const corners[4] = {task.soft + (above + x0) * task.stride, task.soft + (above + x1) * task.stride,
                                         task.soft + (below + x0) * task.stride, task.soft + (below + x1) * task.stride};
        const int32_t count = contenders(task, corners, list);
        for (auto y = rows_begin; y < rows_end; ++y) {
            const float wy = rows.weight[y];
            for (int32_t x = x_begin; x < x_end; ++x) {
                const float wx = columns.weight[x];
                float best = 0.0f;
                int32_t winner = list[0];
                for (int32_t i = 0; i < count; ++i) {
                    const int32_t c = task.channels[list[i]];
                    const float value = (1 - wy) * ((1 - wx) * corners[0][c] + wx * corners[1][c]) +
                                        wy * ((1 - wx) * corners[2][c] + wx * corners[3][c]);
                    if (i == 0 || value > best) {
                        best = value;
                        winner = list[i];
                    }
                }
                const int64_t at = static_cast<int64_t>(y) * task.out_width + x;
                task.labels[at] = task.ids[winner];
                if (task.confidence != nullptr) task.confidence[at] = best;
            }
        }
    }
}

}  // namespace vosrt
