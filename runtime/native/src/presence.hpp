// Whether a followed object is present, lost, back or neither for sure: told from its area and confidence, frame by frame.
#pragma once

#include <cstdint>

#include "vosrt.h"

namespace vosrt {

// See vosrt_memory_options.
struct PresenceOptions {
    int32_t lost_after, back_after, back_for;
    double lost_share, clear_share, back_confidence, iou_factor, iou_power;
};
// Throws Error where a value is out of range.
PresenceOptions presence_options(const vosrt_memory_options &options);

// Sets state and state_confidence of `object` as measured in this frame, from 0; the newest frame may come again. Throws Error where
// `presence` is not what this function left, or the frame is an older one.
void follow_object(const PresenceOptions &options, vosrt_presence &presence, int64_t frame, vosrt_object &object);

}  // namespace vosrt
