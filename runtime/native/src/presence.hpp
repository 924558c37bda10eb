// Whether a followed object is present, lost, back or neither for sure: told from its area and confidence, frame by frame.
#pragma once

#include <cstdint>

#include "vosrt.h"

namespace vosrt {

// Sets state and state_confidence of `object` as measured in this frame, from 0; the newest frame may come again. Throws Error where
// `presence` is not what this function left, or the frame is an older one.
void follow_object(vosrt_presence &presence, int64_t frame, vosrt_object &object);

}  // namespace vosrt
