// Guided output: soft masks that follow the edges of the picture, for what is shown of a frame (He et al. 2013, with the colour
// guide of their section 3.3). Twin: guide_masks in vosrt/core/reference.py.
//
// The guide is the working frame at half its size. What depends on it alone is computed once a frame, in exact integers; each channel
// then takes two box filters. Windows end at the frame's border. All of that is done around the objects alone: a mask that is 0 in
// all windows of a pixel stays 0 there. Background is filtered as what it is not, 1 - p, for which the same holds.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "resample.hpp"
#include "thread_pool.hpp"

namespace vosrt {

// Soft masks of a grid, as the memory keeps them.
struct GridSoft {
    int32_t height, width;
    const float *soft;  // [h * w][stride]
    int64_t stride;
    std::span<const int32_t> channels;  // columns of soft
    Alignment alignment;
};

class Guide {
   public:
    explicit Guide(int32_t radius) : radius_(radius) {}

    bool ready() const { return ready_; }
    int32_t height() const { return height_; }
    int32_t width() const { return width_; }
    // u8 [height, width, 3]; empty before the first frame.
    std::span<const uint8_t> pixels() const { return pixels_; }
    size_t bytes() const;

    // A working frame, u8 [h, w, 3] BGR.
    void set(const uint8_t *bgr, int32_t frame_height, int32_t frame_width, int64_t stride);
    // What pixels() gave, of a session.
    void restore(std::span<const uint8_t> pixels, int32_t height, int32_t width);
    void clear() { ready_ = false; }

    // Masks f32 [height * width][channels], 0 to 1; valid until the next call.
    const float *run(const GridSoft &masks, ThreadPool &pool);

   private:
    // Pixels around the objects, last ones excluded.
    struct Region {
        int32_t top = 0, bottom = 0, left = 0, right = 0;
        int32_t rows() const { return bottom - top; }
        int32_t columns() const { return right - left; }
        bool operator==(const Region &) const = default;
    };

    Region region_of(const GridSoft &masks) const;
    void begin(const Region &region, ThreadPool &pool);
    void sum_row_of_products(int32_t row, int32_t *scratch);
    void invert_row(int32_t row, int32_t *sums);
    void sum_row_of_mask(const GridSoft &masks, size_t i, int32_t row, float *scratch);
    void fit_row(int32_t row, float *sums, float *scratch);
    void draw_row(int32_t row, bool complement, float *sums, float *out, int64_t stride) const;

    const int32_t radius_;
    bool ready_ = false, measured_ = false;
    int32_t height_ = 0, width_ = 0;
    FrameScaler scaler_;
    std::vector<uint8_t> pixels_;
    Region region_;
    std::vector<float> row_share_, column_share_;  // 1 / pixels that the window of a row, or a column, of the region has
    // Of the region, by rows:
    std::vector<int32_t> products_;                   // 9 a pixel, and of `radius` rows around it: sums over columns of I and I I^T
    std::vector<float> colour_;                       // 3 a pixel: I, 0 to 1
    std::vector<float> mean_;                         // 3 a pixel: of I
    std::vector<float> inverse_;                      // 6 a pixel: the upper triangle of (covariance of I + eps)^-1
    std::vector<float> masked_;                       // 4 a pixel: sums over columns of p and I p
    std::vector<float> fitted_;                       // 4 a pixel: sums over columns of a and b
    std::vector<float> out_;                          // [height * width][channels]
    std::vector<std::vector<float>> sums_, scratch_;  // per worker, a row
    std::vector<std::vector<int32_t>> product_sums_, product_scratch_;
    SampleAxis rows_, columns_;
};

}  // namespace vosrt
