// Where the objects of a label map are.
#pragma once

#include <cstdint>
#include <span>

#include "vosrt.h"

namespace vosrt {

// A dense label map with the confidence of its pixels, which may be nullptr: objects then have none.
struct LabelMap {
    int32_t height, width;
    const uint8_t *labels;
    const float *confidence;
};

// Fills in one vosrt_object per id; states are told by pixels alone.
void measure_objects(const LabelMap &map, std::span<const uint8_t> ids, vosrt_object *objects);

}  // namespace vosrt
