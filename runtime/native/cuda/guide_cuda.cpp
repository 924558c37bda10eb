#include "guide_cuda.hpp"

#include <algorithm>

namespace vosrt::cuda {

size_t CudaGuide::bytes() const {
    size_t total = 0;
    for (const Buffer *each : {&frame_, &pixels_, &products_, &inverse_, &masked_, &fitted_, &planes_}) total += each->bytes();
    return total;
}

bool CudaGuide::fits(const Grid &size, size_t channels) const {
    return size.height == size_.height && size.width == size_.width && (channels <= 1 || channels <= channels_);
}

bool CudaGuide::reserve(const Grid &size, size_t channels) {
    if (fits(size, channels)) return false;
    constexpr char kWhat[] = "guided output";
    const auto pixels = static_cast<size_t>(size.cells());
    const bool other_size = size.height != size_.height || size.width != size_.width;
    // Everything is allocated before anything changes. Without objects nothing is filtered.
    Buffer guide, products, inverse, masked, fitted, planes;
    if (other_size) guide = Buffer(device_, 3 * pixels, kWhat);
    if (channels > 1) {
        const size_t at_once = pixels * std::min<size_t>(channels, kGuidedAtOnce) * sizeof(FourPlanes);
        products = Buffer(device_, pixels * guided::kProducts * sizeof(int32_t), kWhat);
        inverse = Buffer(device_, pixels * (3 + guided::kInverse) * sizeof(float), kWhat);
        masked = Buffer(device_, at_once, kWhat);
        fitted = Buffer(device_, at_once, kWhat);
        planes = Buffer(device_, pixels * channels * sizeof(float), kWhat);
    }
    if (other_size) {
        pixels_ = std::move(guide);
        ready_ = false;
    }
    products_ = std::move(products);
    inverse_ = std::move(inverse);
    masked_ = std::move(masked);
    fitted_ = std::move(fitted);
    planes_ = std::move(planes);
    size_ = size;
    channels_ = channels;
    return true;
}

void CudaGuide::set(Queue &queue, const uint8_t *bgr, int32_t height, int32_t width, int64_t stride) {
    launch_resize(queue, {.source = bgr,
                          .source_height = height,
                          .source_width = width,
                          .source_stride = stride,
                          .target = pixels_.data<uint8_t>(),
                          .height = size_.height,
                          .width = size_.width});
    ready_ = true;
}

void CudaGuide::upload(Queue &queue, const uint8_t *bgr, int32_t height, int32_t width, int64_t stride) {
    const size_t bytes = static_cast<size_t>(height - 1) * stride + 3 * static_cast<size_t>(width);
    if (frame_.bytes() < bytes) frame_ = Buffer(device_, bytes, "a picture");
    queue.upload(frame_.data(), bgr, bytes);
    set(queue, frame_.data<uint8_t>(), height, width, stride);
    queue.wait();  // the caller's array is free again
}

SoftView CudaGuide::run(Queue &queue, const NewestMasks &masks, bool align_corners) const {
    launch_guided(queue, {.masks = masks,
                          .align_corners = align_corners,
                          .radius = radius_,
                          .size = size_,
                          .pixels = pixels_.data<uint8_t>(),
                          .products = products_.data<int32_t>(),
                          .inverse = inverse_.data<float>(),
                          .masked = masked_.data<FourPlanes>(),
                          .fitted = fitted_.data<FourPlanes>(),
                          .first = 0,
                          .out = planes_.data<float>()});
    return view_of_planes(size_, planes_.data<float>());
}

std::span<const uint8_t> CudaGuide::download(Queue &queue) {
    on_host_.resize(pixels_.bytes());
    queue.download(on_host_.data(), pixels_.data(), pixels_.bytes());
    queue.wait();
    return on_host_;
}

void CudaGuide::restore(Queue &queue, std::span<const uint8_t> pixels) {
    queue.upload(pixels_.data(), pixels.data(), pixels.size());
    queue.wait();
    ready_ = true;
}

}  // namespace vosrt::cuda
