#include "guided.hpp"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "guided_pixel.hpp"

namespace vosrt {
namespace {

using guided::kPlanes, guided::kProducts;

// out[i] = sum over the window of in[i + n d]: a row whose n values a pixel have `radius` pixels of zeros at both ends.
template <class T>
void sum_columns(const T *in, int32_t n, int32_t radius, size_t size, T *out) {
    std::copy_n(in, size, out);
    for (int32_t d = 1; d <= 2 * radius; ++d) {
        const T *from = in + static_cast<size_t>(n) * d;
        for (size_t i = 0; i < size; ++i) out[i] += from[i];
    }
}

// out = sum of rows, last one excluded.
template <class T>
void sum_rows(const T *rows, int32_t first, int32_t last, size_t size, T *out) {
    std::copy_n(rows + first * size, size, out);
    for (int32_t row = first + 1; row < last; ++row) {
        const T *from = rows + row * size;
        for (size_t i = 0; i < size; ++i) out[i] += from[i];
    }
}

float filtered(const GridSoft &masks, int64_t cell, size_t i) {
    return guided::filtered(masks.soft[cell * masks.stride + masks.channels[i]], i == 0);
}

// Of the windows from `first` on, along an axis of `size` pixels.
void shares_of_windows(int32_t first, int32_t last, int32_t radius, int32_t size, std::vector<float> &out) {
    out.clear();
    for (int32_t i = first; i < last; ++i) out.push_back(guided::share_of_window(i, radius, size));
}

}  // namespace

size_t Guide::bytes() const {
    const size_t floats = colour_.size() + mean_.size() + inverse_.size() + masked_.size() + fitted_.size() + out_.size();
    return pixels_.size() + products_.size() * sizeof(int32_t) + floats * sizeof(float);
}

void Guide::set(const uint8_t *bgr, int32_t frame_height, int32_t frame_width, int64_t stride) {
    height_ = std::max(frame_height / 2, 1);
    width_ = std::max(frame_width / 2, 1);
    pixels_.resize(static_cast<size_t>(height_) * width_ * 3);
    const Picture frame{VOSRT_FORMAT_BGR, frame_height, frame_width, bgr, stride, nullptr, 0};
    scaler_.run(frame, pixels_.data(), height_, width_, int64_t{3} * width_);
    ready_ = true;
    measured_ = false;
}

void Guide::restore(std::span<const uint8_t> pixels, int32_t height, int32_t width) {
    pixels_.assign(pixels.begin(), pixels.end());
    height_ = height;
    width_ = width;
    ready_ = true;
    measured_ = false;
}

// The pixels that some channel's cells reach, and two windows beyond.
Guide::Region Guide::region_of(const GridSoft &masks) const {
    int32_t top = masks.height, bottom = -1, left = masks.width, right = -1;
    for (int32_t y = 0; y < masks.height; ++y)
        for (int32_t x = 0; x < masks.width; ++x) {
            bool any = false;
            for (size_t i = 0; i < masks.channels.size() && !any; ++i)
                any = filtered(masks, static_cast<int64_t>(y) * masks.width + x, i) != 0.0f;
            if (!any) continue;
            top = std::min(top, y);
            bottom = y;
            left = std::min(left, x);
            right = std::max(right, x);
        }
    if (bottom < 0) return {};
    const auto reach = [this](const SampleAxis &axis, int32_t from, int32_t to, int32_t &first, int32_t &last) {
        const auto size = static_cast<int32_t>(axis.first.size());
        first = size;
        last = 0;
        for (int32_t i = 0; i < size; ++i)
            if (axis.second[i] >= from && axis.first[i] <= to) {
                first = std::min(first, i);
                last = i + 1;
            }
        first = std::max(first - 2 * radius_, 0);
        last = std::min(last + 2 * radius_, size);
    };
    Region region;
    reach(rows_, top, bottom, region.top, region.bottom);
    reach(columns_, left, right, region.left, region.right);
    return region;
}

void Guide::sum_row_of_products(int32_t row, int32_t *scratch) {
    const int32_t y = region_.top - radius_ + row;
    const size_t size = static_cast<size_t>(region_.columns()) * kProducts;
    int32_t *const target = products_.data() + row * size;
    if (y < 0 || y >= height_) return void(std::fill_n(target, size, 0));
    const int32_t padded = region_.columns() + 2 * radius_;
    std::fill_n(scratch, static_cast<size_t>(padded) * kProducts, 0);
    const int32_t first = std::max(region_.left - radius_, 0), last = std::min(region_.right + radius_, width_);
    const uint8_t *pixel = pixels_.data() + (static_cast<size_t>(y) * width_ + first) * 3;
    int32_t *out = scratch + (first - region_.left + radius_) * kProducts;
    for (int32_t x = first; x < last; ++x, pixel += 3, out += kProducts) guided::products_of(pixel, out);
    sum_columns(scratch, kProducts, radius_, size, target);
}

void Guide::invert_row(int32_t row, int32_t *sums) {
    const size_t size = static_cast<size_t>(region_.columns()) * kProducts;
    sum_rows(products_.data(), row, row + 2 * radius_ + 1, size, sums);
    const int32_t *s = sums;
    const uint8_t *pixel = pixels_.data() + (static_cast<size_t>(region_.top + row) * width_ + region_.left) * 3;
    size_t at = static_cast<size_t>(row) * region_.columns();
    for (int32_t x = 0; x < region_.columns(); ++x, ++at, s += kProducts, pixel += 3) {
        const double share = static_cast<double>(row_share_[row]) * column_share_[x];
        guided::invert(s, share, mean_.data() + 3 * at, inverse_.data() + guided::kInverse * at);
        for (int32_t i = 0; i < 3; ++i) colour_[3 * at + i] = static_cast<float>(pixel[i]) * guided::kColour;
    }
}

// Room for a region, and what depends on the picture alone.
void Guide::begin(const Region &region, ThreadPool &pool) {
    if (measured_ && region == region_) return;
    region_ = region;
    const auto columns = static_cast<size_t>(region.columns()), pixels = region.rows() * columns;
    const size_t padded = columns + 2 * radius_, workers = static_cast<size_t>(pool.size());
    products_.resize((region.rows() + 2 * radius_) * columns * kProducts);
    for (auto &[buffer, each] : std::initializer_list<std::pair<std::vector<float> *, size_t>>{
             {&colour_, 3}, {&mean_, 3}, {&inverse_, 6}, {&masked_, kPlanes}, {&fitted_, kPlanes}})
        buffer->resize(pixels * each);
    for (auto *buffers : {&scratch_, &sums_}) buffers->resize(workers);
    for (auto *buffers : {&product_scratch_, &product_sums_}) buffers->resize(workers);
    for (size_t i = 0; i < workers; ++i) {
        scratch_[i].assign(padded * kPlanes, 0.0f);  // its ends stay 0
        sums_[i].resize(columns * kPlanes);
        product_scratch_[i].resize(padded * kProducts);
        product_sums_[i].resize(columns * kProducts);
    }
    shares_of_windows(region.top, region.bottom, radius_, height_, row_share_);
    shares_of_windows(region.left, region.right, radius_, width_, column_share_);
    pool.run(region.rows() + 2 * radius_,
             [&](int32_t row, int32_t worker) { sum_row_of_products(row, product_scratch_[worker].data()); });
    pool.run(region.rows(), [&](int32_t row, int32_t worker) { invert_row(row, product_sums_[worker].data()); });
    measured_ = true;
}

// A row of p and I p.
void Guide::sum_row_of_mask(const GridSoft &masks, size_t i, int32_t row, float *scratch) {
    const int32_t y = region_.top + row;
    const int64_t above = static_cast<int64_t>(rows_.first[y]) * masks.width, below = static_cast<int64_t>(rows_.second[y]) * masks.width;
    const float wy = rows_.weight[y];
    const float *colour = colour_.data() + static_cast<size_t>(row) * region_.columns() * 3;
    float *out = scratch + kPlanes * radius_;
    int32_t held = -1;
    float left = 0.0f, right = 0.0f;
    for (int32_t x = region_.left; x < region_.right; ++x, colour += 3, out += kPlanes) {
        if (columns_.first[x] != held) {
            held = columns_.first[x];
            const int32_t next = columns_.second[x];
            left = (1 - wy) * filtered(masks, above + held, i) + wy * filtered(masks, below + held, i);
            right = (1 - wy) * filtered(masks, above + next, i) + wy * filtered(masks, below + next, i);
        }
        const float p = (1 - columns_.weight[x]) * left + columns_.weight[x] * right;
        out[0] = p;
        for (int32_t a = 0; a < 3; ++a) out[1 + a] = p * colour[a];
    }
    const size_t size = static_cast<size_t>(region_.columns()) * kPlanes;
    sum_columns(scratch, kPlanes, radius_, size, masked_.data() + row * size);
}

void Guide::fit_row(int32_t row, float *sums, float *scratch) {
    const size_t size = static_cast<size_t>(region_.columns()) * kPlanes;
    sum_rows(masked_.data(), std::max(row - radius_, 0), std::min(row + radius_ + 1, region_.rows()), size, sums);
    float *out = scratch + kPlanes * radius_;
    const float *mean = mean_.data() + static_cast<size_t>(row) * region_.columns() * 3;
    const float *inverse = inverse_.data() + static_cast<size_t>(row) * region_.columns() * guided::kInverse;
    for (int32_t x = 0; x < region_.columns(); ++x, sums += kPlanes, out += kPlanes, mean += 3, inverse += guided::kInverse)
        guided::fit(sums, row_share_[row] * column_share_[x], mean, inverse, out);
    sum_columns(scratch, kPlanes, radius_, size, fitted_.data() + row * size);
}

void Guide::draw_row(int32_t row, bool complement, float *sums, float *out, int64_t stride) const {
    const size_t size = static_cast<size_t>(region_.columns()) * kPlanes;
    sum_rows(fitted_.data(), std::max(row - radius_, 0), std::min(row + radius_ + 1, region_.rows()), size, sums);
    const float *colour = colour_.data() + static_cast<size_t>(row) * region_.columns() * 3;
    out += (static_cast<size_t>(region_.top + row) * width_ + region_.left) * stride;
    for (int32_t x = 0; x < region_.columns(); ++x, sums += kPlanes, colour += 3, out += stride)
        *out = guided::show(sums, row_share_[row] * column_share_[x], colour[0], colour[1], colour[2], complement);
}

const float *Guide::run(const GridSoft &masks, ThreadPool &pool) {
    rows_.set(masks.height, height_, masks.alignment);
    columns_.set(masks.width, width_, masks.alignment);
    const size_t count = masks.channels.size(), pixels = static_cast<size_t>(height_) * width_;
    out_.assign(pixels * count, 0.0f);
    for (size_t i = 0; i < pixels; ++i) out_[i * count] = 1.0f;
    begin(region_of(masks), pool);
    for (size_t i = 0; i < count; ++i) {
        pool.run(region_.rows(), [&](int32_t row, int32_t worker) { sum_row_of_mask(masks, i, row, scratch_[worker].data()); });
        pool.run(region_.rows(), [&](int32_t row, int32_t worker) { fit_row(row, sums_[worker].data(), scratch_[worker].data()); });
        pool.run(region_.rows(), [&](int32_t row, int32_t worker) {
            draw_row(row, i == 0, sums_[worker].data(), out_.data() + i, static_cast<int64_t>(count));
        });
    }
    return out_.data();
}

}  // namespace vosrt
