// A caller's pixels in any supported format, read row by row as BGR. NV12 is that of vosrt/core/reference.py within one step.
#pragma once

#include <array>
#include <cstdint>

#include "vosrt.h"

namespace vosrt {

struct Picture {
    vosrt_pixel_format format;
    int32_t height, width;
    const uint8_t *data;
    int64_t stride;
    const uint8_t *chroma;
    int64_t chroma_stride;
};

// Checks the view and fills in its defaults. `name` is for messages. Throws Error.
Picture to_picture(const vosrt_image &image, const char *name);

// Row y as u8 [width, 3] BGR: the picture's own memory if it is that already, else `scratch`, filled.
const uint8_t *bgr_row(const Picture &picture, int32_t y, uint8_t *scratch);

// Which ids a mask holds, 0 included.
std::array<bool, 256> ids_in(const Picture &mask);

// Whether the picture is u8 [height, width, 3] BGR without gaps.
bool is_dense_bgr(const Picture &picture);

}  // namespace vosrt
