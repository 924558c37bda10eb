// Resampling between frames, masks and the feature grid. Each function has a NumPy twin in vosrt/ops/reference.py.
#pragma once

#include <cstdint>
#include <vector>

namespace vosrt {

// u8 [H, W, 3] -> u8 [h, w, 3]; bilinear, half-pixel centres, 11-bit integer weights. Strides in bytes.
void resize_bgr(const uint8_t *source, int32_t source_height, int32_t source_width, int64_t source_stride,
                uint8_t *target, int32_t target_height, int32_t target_width, int64_t target_stride);

// Annotation u8 [H, W] -> soft masks on the grid.
struct GridMask {
    std::vector<uint8_t> ids;  // present in the annotation, ascending
    std::vector<float> soft;   // [h * w][ids]
};

// One-hot, bilinear with corners aligned; an object that no cell would show takes over the cell with most of its
// pixels. Throws Error: no object in the mask, or more such objects than cells.
GridMask resize_mask(const uint8_t *mask, int32_t mask_height, int32_t mask_width, int64_t stride, int32_t height,
                     int32_t width);

// Bilinear sampling positions with corners aligned: output i lies between inputs first[i] and second[i].
struct AlignedAxis {
    std::vector<int32_t> first, second;
    std::vector<float> weight;  // of second

    void set(int32_t inputs, int32_t outputs);
};

// Soft masks on the grid -> labels, for output rows whose upper grid row is `grid_row`.
struct LabelTask {
    int32_t height, width;            // grid
    const float *soft;                // [h * w][stride]
    int64_t stride;
    const int32_t *channels;          // [count] columns of soft in tie-breaking order
    const uint8_t *ids;               // [count] label of each
    int32_t count;
    int32_t out_height, out_width;
    const AlignedAxis *rows, *columns;
    uint8_t *labels;                  // [H, W]
    float *confidence;                // [H, W] or nullptr
};
void label_rows(const LabelTask &task, int32_t grid_row);

}  // namespace vosrt
