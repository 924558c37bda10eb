// What the C API's options mean: defaults filled in, ranges checked.
#include <string>

#include "error.hpp"
#include "isa.hpp"
#include "memory.hpp"
#include "ranges.hpp"

namespace vosrt {

// The same as in PropagationOptions of runtime/src/vosrt/types.py; a test compares them.
vosrt_memory_options default_memory_options() {
    return {.struct_size = sizeof(vosrt_memory_options),
            .height = 0,
            .width = 0,
            .channels = 0,
            .context = 20,
            .radius = 12.0f,
            .top_k = 10,
            .temperature = 0.05f,
            .pad_context = 1,
            .yield_background = 1,
            .precision = VOSRT_PRECISION_AUTO,
            .isa = VOSRT_ISA_AUTO,
            .threads = 0,
            .device = 0,
            .align_corners = 1,
            .centring = 0.0f,
            .sharpness = 1.0f,
            .object_bias = 0.0f,
            .guided = 0,
            .calibration = 0,
            .motion = 0.0f,
            .lost_after = 3,
            .back_after = 3,
            .back_for = 5,
            .lost_share = 0.15,
            .clear_share = 0.25,
            .back_confidence = 0.6,
            .iou_factor = 0.31,
            .iou_power = 1.38,
            .parts = 1,
            .reserved = 0};
}

vosrt_model_options default_model_options() {
    vosrt_model_options out{};
    out.struct_size = sizeof out;
    out.stride = 8;
    out.min_side = 16;
    out.max_side = 4096;
    out.size = 480;
    out.feedback = 1;
    out.enlarge_percent = 100;
    return out;
}

PresenceOptions presence_options(const vosrt_memory_options &in) {
    return {.lost_after = ranges::lost_after.check(in.lost_after),
            .back_after = ranges::back_after.check(in.back_after),
            .back_for = ranges::back_for.check(in.back_for),
            .lost_share = ranges::lost_share.check(in.lost_share),
            .clear_share = ranges::clear_share.check(in.clear_share),
            .back_confidence = ranges::back_confidence.check(in.back_confidence),
            .iou_factor = ranges::iou_factor.check(in.iou_factor),
            .iou_power = ranges::iou_power.check(in.iou_power)};
}

MemoryOptions resolve(const vosrt_memory_options &in) {
    constexpr int64_t kMaxCells = 1 << 22;
    MemoryOptions out{};
    out.height = within(in.height, 1, kMaxSide, "height");
    out.width = within(in.width, 1, kMaxSide, "width");
    if (static_cast<int64_t>(in.height) * in.width > kMaxCells)
        invalid("the grid has " + std::to_string(static_cast<int64_t>(in.height) * in.width) + " cells; at most " +
                std::to_string(kMaxCells) + " are supported");
    out.channels = within(in.channels, 1, 65536, "channels");
    out.context = ranges::context.check(in.context);
    out.radius = ranges::radius.check(in.radius);
    out.top_k = ranges::top_k.check(in.top_k);
    out.temperature = ranges::temperature.check(in.temperature);
    out.centring = ranges::centring.check(in.centring);
    out.sharpness = ranges::sharpness.check(in.sharpness);
    out.object_bias = ranges::object_bias.check(in.object_bias);
    out.guided = ranges::guided.check(in.guided);
    out.calibration = ranges::calibration.check(in.calibration);
    out.motion = ranges::motion.check(in.motion);
    out.presence = presence_options(in);
    out.pad_context = within(in.pad_context, 0, 1, "pad_context") == 1;
    out.yield_background = within(in.yield_background, 0, 1, "yield_background") == 1;
    out.alignment = within(in.align_corners, 0, 1, "align_corners") == 1 ? Alignment::corners : Alignment::half_pixel;
    out.parts = ranges::parts.check(in.parts);
    if (out.parts > 1 && out.alignment == Alignment::corners)
        invalid("parts is " + std::to_string(out.parts) + "; expected 1 where corners are aligned");
    within(in.precision, VOSRT_PRECISION_AUTO, VOSRT_PRECISION_BF16, "precision");
    within(in.isa, VOSRT_ISA_AUTO, kLastIsa, "isa");
    out.isa = choose_isa(static_cast<vosrt_isa>(in.isa), static_cast<vosrt_precision>(in.precision));
    out.threads = within(in.threads, 0, 1024, "threads");
    out.device = in.device;
    check_device(in.device);
    return out;
}

}  // namespace vosrt
