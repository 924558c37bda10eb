// Resampling between frames, masks and the feature grid; vosrt/core/reference.py defines it in NumPy.
#pragma once

#include <cstdint>
#include <vector>

#include "picture.hpp"

namespace vosrt {

// Where the cells of a grid lie on the pixels of a frame.
enum class Alignment {
    corners,     // the first cell on the first pixel, the last on the last
    half_pixel,  // every cell on the middle of its share of the pixels
};

// Bilinear sampling positions with pixel centres at half-integers and 11-bit integer weights.
struct HalfPixelAxis {
    std::vector<int32_t> first, second, weight;  // weight is of second

    void set(int64_t inputs, int64_t outputs);
};

// Brings pictures of any pixel format to u8 [h, w, 3] BGR of another size. Allocates only where sizes change.
class FrameScaler {
   public:
    void run(const Picture &source, uint8_t *target, int32_t target_height, int32_t target_width, int64_t target_stride);

   private:
    const int32_t *horizontal(const Picture &source, int32_t y, int32_t keep);

    HalfPixelAxis rows_, columns_;
    int32_t sizes_[4] = {};
    std::vector<uint8_t> converted_;     // a row of the source, where it is not BGR
    std::vector<int32_t> resampled_[2];  // two rows of the source at the target's width
    int32_t held_[2] = {-1, -1};         // which ones
};

// Annotation u8 [H, W] -> soft masks on the grid.
struct GridMask {
    std::vector<uint8_t> ids;  // present in the annotation, ascending
    std::vector<float> soft;   // [h * w][ids]
};

// Corners aligned: one-hot, bilinear; half-pixel: the share of a cell that an object covers. An object that no cell would show
// takes over the cell with most of its pixels. Throws Error: no object in the mask, or more such objects than cells.
GridMask resize_mask(const uint8_t *mask, int32_t mask_height, int32_t mask_width, int64_t stride, int32_t height,
                     int32_t width, Alignment alignment);

// Bilinear sampling positions: output i lies between inputs first[i] and second[i].
struct SampleAxis {
    std::vector<int32_t> first, second;
    std::vector<float> weight;  // of second

    void set(int32_t inputs, int32_t outputs, Alignment alignment);
};

// Bilinear: `wx` of the way from a to b and from c to d, `wy` of the way from the upper two to the lower two.
inline float blend(float wx, float wy, float a, float b, float c, float d) {
    return (1 - wy) * ((1 - wx) * a + wx * b) + wy * ((1 - wx) * c + wx * d);
}

// Soft masks on the grid -> labels, for output rows whose upper grid row is `grid_row`.
struct LabelTask {
    int32_t height, width;  // grid
    const float *soft;      // [h * w][stride]
    int64_t stride;
    const int32_t *channels;  // [count] columns of soft in tie-breaking order
    const uint8_t *ids;       // [count] label of each
    int32_t count;
    int32_t out_height, out_width;
    const SampleAxis *rows, *columns;
    uint8_t *labels;    // [H, W]
    float *confidence;  // [H, W] or nullptr
};
void label_rows(const LabelTask &task, int32_t grid_row);

}  // namespace vosrt
