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

// Where output i lies among the inputs: `past` / `unit` behind input `first`, in exact integers.
struct Position {
    int64_t first, past, unit;
};
Position position_of(int64_t i, int64_t inputs, int64_t outputs) {
    const int64_t unit = 2 * outputs;
    const int64_t at = std::clamp((2 * i + 1) * inputs - outputs, int64_t{0}, (inputs - 1) * unit);
    return {at / unit, at % unit, unit};
}

// Which of `outputs` grid cells input i belongs to: with aligned corners the nearest, halves rounded up; else the one around it.
int64_t cell_of(int64_t i, int64_t inputs, int64_t outputs, Alignment alignment) {
    if (alignment == Alignment::half_pixel) return (2 * i + 1) * outputs / (2 * inputs);
    return inputs > 1 ? (2 * i * (outputs - 1) + (inputs - 1)) / (2 * (inputs - 1)) : 0;
}

}  // namespace

void HalfPixelAxis::set(int64_t inputs, int64_t outputs) {
    first.resize(outputs);
    second.resize(outputs);
    weight.resize(outputs);
    for (int64_t i = 0; i < outputs; ++i) {
        const Position at = position_of(i, inputs, outputs);
        first[i] = static_cast<int32_t>(at.first);
        second[i] = static_cast<int32_t>(std::min(at.first + 1, inputs - 1));
        weight[i] = static_cast<int32_t>((at.past * kWeightOne + outputs) / at.unit);
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

void SampleAxis::set(int32_t inputs, int32_t outputs, Alignment alignment) {
    first.resize(outputs);
    second.resize(outputs);
    weight.resize(outputs);
    const float scale = outputs > 1 ? static_cast<float>(inputs - 1) / static_cast<float>(outputs - 1) : 0.0f;
    for (int32_t i = 0; i < outputs; ++i) {
        if (alignment == Alignment::half_pixel) {
            const Position at = position_of(i, inputs, outputs);
            first[i] = static_cast<int32_t>(at.first);
            weight[i] = static_cast<float>(at.past) / static_cast<float>(at.unit);
        } else {
            const float position = scale * static_cast<float>(i);
            first[i] = std::min(static_cast<int32_t>(position), inputs - 1);
            weight[i] = position - static_cast<float>(first[i]);
        }
        second[i] = std::min(first[i] + 1, inputs - 1);
    }
}

namespace {

// The first object that no cell holds by more than one half, or -1.
int32_t first_lost(const GridMask &grid) {
    const size_t count = grid.ids.size();
    std::vector<float> largest(count, 0.0f);
    for (size_t i = 0; i < grid.soft.size(); ++i) largest[i % count] = std::max(largest[i % count], grid.soft[i]);
    const auto lost = std::find_if(largest.begin(), largest.end(), [](float value) { return value <= 0.5f; });
    return lost == largest.end() ? -1 : static_cast<int32_t>(lost - largest.begin());
}

// The cell with most of its pixels goes to an object that no cell holds by more than one half.
void rescue(GridMask &grid, int32_t channel, const uint8_t *mask, int32_t mask_height, int32_t mask_width,
            int64_t stride, int32_t height, int32_t width, Alignment alignment, std::vector<bool> &taken) {
    std::vector<int64_t> pixels(static_cast<size_t>(height) * width);
    for (int32_t y = 0; y < mask_height; ++y)
        for (int32_t x = 0; x < mask_width; ++x)
            if (mask[y * stride + x] == grid.ids[channel])
                ++pixels[cell_of(y, mask_height, height, alignment) * width + cell_of(x, mask_width, width, alignment)];
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

struct MaskTask {
    const uint8_t *mask;
    int32_t mask_height, mask_width;
    int64_t stride;
    int32_t height, width;                    // grid
    const std::array<int32_t, 256> &channel;  // of an id
};

// Bilinear, corners aligned.
void sample(const MaskTask &task, GridMask &grid) {
    SampleAxis rows, columns;
    rows.set(task.mask_height, task.height, Alignment::corners);
    columns.set(task.mask_width, task.width, Alignment::corners);
    float *cell = grid.soft.data();
    for (int32_t y = 0; y < task.height; ++y) {
        const uint8_t *above = task.mask + rows.first[y] * task.stride, *below = task.mask + rows.second[y] * task.stride;
        const float wy = rows.weight[y];
        for (int32_t x = 0; x < task.width; ++x, cell += grid.ids.size()) {
            const int32_t x0 = columns.first[x], x1 = columns.second[x];
            const float wx = columns.weight[x];
            const uint8_t corners[4] = {above[x0], above[x1], below[x0], below[x1]};
            for (const uint8_t id : corners) {
                if (id == 0) continue;
                const auto is = [id](uint8_t corner) { return corner == id ? 1.0f : 0.0f; };
                cell[task.channel[id]] = blend(wx, wy, is(corners[0]), is(corners[1]), is(corners[2]), is(corners[3]));
            }
        }
    }
}

// The pixels that cell i of `cells` has a part of, and how much, in units of 1 / cells of a pixel.
struct Share {
    int64_t begin, end, cells, pixels;

    Share(int64_t i, int64_t cell_count, int64_t pixel_count)
        : begin(i * pixel_count / cell_count),
          end(((i + 1) * pixel_count + cell_count - 1) / cell_count),
          cells(cell_count),
          pixels(pixel_count),
          from_(i * pixel_count) {}
    int64_t of(int64_t pixel) const {
        return std::min(from_ + pixels, (pixel + 1) * cells) - std::max(from_, pixel * cells);
    }

   private:
    int64_t from_;
};

// Each cell has the share of its area that an object covers, in exact integers until the end.
void share_out(const MaskTask &task, GridMask &grid) {
    const size_t count = grid.ids.size();
    const double whole = static_cast<double>(static_cast<int64_t>(task.mask_height) * task.mask_width);
    std::vector<int64_t> covered(count);
    for (int32_t y = 0; y < task.height; ++y) {
        const Share rows(y, task.height, task.mask_height);
        for (int32_t x = 0; x < task.width; ++x) {
            const Share columns(x, task.width, task.mask_width);
            std::fill(covered.begin(), covered.end(), 0);
            for (int64_t row = rows.begin; row < rows.end; ++row)
                for (int64_t column = columns.begin; column < columns.end; ++column)
                    if (const uint8_t id = task.mask[row * task.stride + column]; id != 0)
                        covered[task.channel[id]] += rows.of(row) * columns.of(column);
            float *cell = grid.soft.data() + (static_cast<size_t>(y) * task.width + x) * count;
            for (size_t i = 0; i < count; ++i) cell[i] = static_cast<float>(static_cast<double>(covered[i]) / whole);
        }
    }
}

}  // namespace

GridMask resize_mask(const uint8_t *mask, int32_t mask_height, int32_t mask_width, int64_t stride, int32_t height,
                     int32_t width, Alignment alignment) {
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

    grid.soft.assign(static_cast<size_t>(height) * width * grid.ids.size(), 0.0f);
    const MaskTask task{mask, mask_height, mask_width, stride, height, width, channel};
    if (alignment == Alignment::half_pixel)
        share_out(task, grid);
    else
        sample(task, grid);
    std::vector<bool> taken(static_cast<size_t>(height) * width, false);
    // A rescue may take another object's only cell, so each one starts the search anew.
    for (int32_t lost; (lost = first_lost(grid)) >= 0;)
        rescue(grid, lost, mask, mask_height, mask_width, stride, height, width, alignment, taken);
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

// Pixels between four grid cells that one channel wins: most of a large frame, in loops without branches.
void fill_cell(const LabelTask &task, const float *const corners[4], int32_t winner, ptrdiff_t y_begin, ptrdiff_t y_end,
               int32_t x_begin, int32_t x_end) {
    const int32_t c = task.channels[winner];
    const float a = corners[0][c], b = corners[1][c], below_a = corners[2][c], below_b = corners[3][c];
    const float *wx = task.columns->weight.data();
    for (ptrdiff_t y = y_begin; y < y_end; ++y) {
        const float wy = task.rows->weight[y];
        const int64_t row = y * task.out_width;
        std::fill(task.labels + row + x_begin, task.labels + row + x_end, task.ids[winner]);
        if (task.confidence == nullptr) continue;
        float *confidence = task.confidence + row;
        for (int32_t x = x_begin; x < x_end; ++x) confidence[x] = blend(wx[x], wy, a, b, below_a, below_b);
    }
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
        if (count == 1) {
            fill_cell(task, corners, list[0], rows_begin, rows_end, x_begin, x_end);
            continue;
        }
        for (auto y = rows_begin; y < rows_end; ++y) {
            const float wy = rows.weight[y];
            for (int32_t x = x_begin; x < x_end; ++x) {
                const float wx = columns.weight[x];
                float best = 0.0f;
                int32_t winner = list[0];
                for (int32_t i = 0; i < count; ++i) {
                    const int32_t c = task.channels[list[i]];
                    const float value =
                        blend(wx, wy, corners[0][c], corners[1][c], corners[2][c], corners[3][c]);
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
