// What the C API's options mean: defaults filled in, ranges checked.
#include <string>

#include "error.hpp"
#include "isa.hpp"
#include "memory.hpp"

namespace vosrt {

MemoryOptions resolve(const vosrt_memory_options &in) {
    constexpr int64_t kMaxCells = 1 << 22;
    MemoryOptions out{};
    out.height = within(in.height, 1, kMaxSide, "height");
    out.width = within(in.width, 1, kMaxSide, "width");
    if (static_cast<int64_t>(in.height) * in.width > kMaxCells)
        invalid("the grid has " + std::to_string(static_cast<int64_t>(in.height) * in.width) + " cells; at most " +
                std::to_string(kMaxCells) + " are supported");
    out.channels = within(in.channels, 1, 65536, "channels");
    out.context = in.context == 0 ? 20 : in.context == -1 ? 0 : within(in.context, 1, 1024, "context");
    out.window = within(in.window, VOSRT_WINDOW_CIRCLE, VOSRT_WINDOW_SQUARE, "window");
    out.radius = in.radius == 0.0f ? 12.0f : in.radius;
    if (!(out.radius > 0.0f && out.radius <= 4096.0f))
        invalid("radius is " + std::to_string(in.radius) + "; expected more than 0 and at most 4096 cells");
    out.top_k = in.top_k == 0 ? 10 : within(in.top_k, 1, 64, "top_k");
    out.temperature = in.temperature == 0.0f ? 0.05f : in.temperature;
    if (!(out.temperature >= 1e-4f && out.temperature <= 1e4f))
        invalid("temperature is " + std::to_string(in.temperature) + "; expected 1e-4 to 1e4");
    out.pad_context = in.drop_padding == 0;
    out.global_reference = in.local_reference == 0;
    out.yield_background = in.keep_background == 0;
    out.alignment = within(in.half_pixel, 0, 1, "half_pixel") == 1 ? Alignment::half_pixel : Alignment::corners;
    within(in.precision, VOSRT_PRECISION_AUTO, VOSRT_PRECISION_BF16, "precision");
    within(in.isa, VOSRT_ISA_AUTO, VOSRT_ISA_CUDA, "isa");
    out.isa = choose_isa(static_cast<vosrt_isa>(in.isa), static_cast<vosrt_precision>(in.precision));
    out.threads = within(in.threads, 0, 1024, "threads");
    out.device = in.device;
#if !defined(VOSRT_CUDA_LIBRARY)
    if (in.device != 0)
        throw Error(VOSRT_UNSUPPORTED, "device " + std::to_string(in.device) + " was asked for; libvosrt computes on the "
                                       "processor: use libvosrt_cuda");
#endif
    return out;
}

}  // namespace vosrt
