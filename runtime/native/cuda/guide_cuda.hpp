// The picture that labels follow, and what guided output needs beside it, on a GPU; src/guided.hpp has the same on the processor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device.hpp"
#include "kernels.hpp"

namespace vosrt::cuda {

class CudaGuide {
   public:
    CudaGuide(int32_t device, int32_t radius) : device_(device), radius_(radius) {}

    bool wanted() const { return radius_ != 0; }
    bool ready() const { return ready_; }
    const Grid &size() const { return size_; }
    size_t bytes() const;

    // Half the size of a frame.
    static Grid size_for(int32_t frame_height, int32_t frame_width) { return {larger(frame_height / 2, 1), larger(frame_width / 2, 1)}; }
    bool fits(const Grid &size, size_t channels) const;
    // Makes room for guides of a size and so many channels; whether arrays are others now. Throws Error.
    bool reserve(const Grid &size, size_t channels);

    // The following are queued. The frame is u8 [height, width, 3] on the GPU.
    void set(Queue &queue, const uint8_t *bgr, int32_t height, int32_t width, int64_t stride);
    // The same of a frame in host memory; waited for.
    void upload(Queue &queue, const uint8_t *bgr, int32_t height, int32_t width, int64_t stride);
    // Planes f32 [channels][size], valid until the next call.
    SoftView run(Queue &queue, const NewestMasks &masks, bool align_corners) const;

    void set_ready(bool ready) { ready_ = ready; }
    // Pixels u8 [size, 3] on the host, of a session.
    std::span<const uint8_t> download(Queue &queue);
    void restore(Queue &queue, std::span<const uint8_t> pixels);

   private:
    int32_t device_, radius_;
    bool ready_ = false;  // whether pixels_ are the newest frame's
    Grid size_{};
    size_t channels_ = 0;
    Buffer frame_, pixels_, products_, inverse_, masked_, fitted_, planes_;
    std::vector<uint8_t> on_host_;
};

}  // namespace vosrt::cuda
