// The C boundary of vosrt_cuda.h.
#include "vosrt_cuda.h"

#include <map>
#include <memory>
#include <mutex>

#include "c_api.hpp"
#include "memory_cuda.hpp"

namespace vosrt {

// Without locks: a stream and an event of CUDA may be used by several threads. No part of CUDA survives a fork.
template <>
struct Behind<vosrt_cuda_queue> : Object {
    static constexpr char kKind[] = "queue";

    explicit Behind(int32_t device) : Object(kKind), queue(device) {}
    bool has_threads() const override { return true; }

    cuda::Queue queue;
};
template <>
struct Behind<vosrt_cuda_event> : Object {
    static constexpr char kKind[] = "event";

    explicit Behind(int32_t device) : Object(kKind), event(device) {}
    bool has_threads() const override { return true; }

    cuda::Event event;
};

template <>
inline constexpr size_t kFirstSize<vosrt_cuda_device> = 296;
template <>
inline constexpr size_t kFirstSize<vosrt_cuda_frame> = 48;
static_assert(VOSRT_CUDA_STAGES == CudaMemory::kStages);

}  // namespace vosrt

namespace {

using vosrt::guarded;
using vosrt::require;

// All memories of this library are on a GPU.
vosrt::CudaMemory &memory_of(const auto &call) { return static_cast<vosrt::CudaMemory &>(*call->memory); }

// What vosrt_cuda_allocate gave and was not freed yet.
std::map<void *, vosrt::cuda::Buffer> &allocated() {
    static auto *all = new std::map<void *, vosrt::cuda::Buffer>;  // never destroyed: at exit the driver may be gone
    return *all;
}
std::mutex allocated_lock;

vosrt::FrameTask task_of(const vosrt_cuda_frame *given, bool whole) {
    const vosrt_cuda_frame frame = vosrt::read_struct(given, "frame");
    if (whole) require(frame.embedding, "frame.embedding");
    if (!whole) require(frame.labels, "frame.labels");
    if (frame.labels != nullptr) vosrt::check_image(frame.height, frame.width, frame.width, 1);
    if (frame.bgr != nullptr) vosrt::check_image(frame.bgr_height, frame.bgr_width, int64_t{3} * frame.bgr_width, 3);
    return {frame.embedding, frame.height, frame.width, frame.labels, frame.confidence, frame.totals, frame.bgr, frame.bgr_height, frame.bgr_width};
}

vosrt::cuda::SoftView view_of(const float *planes, int32_t height, int32_t width, const char *name) {
    require(planes, name);
    vosrt::check_image(height, width, width, 1);
    return vosrt::cuda::view_of_planes({height, width}, planes);
}

vosrt::cuda::Planes planes_of(float *planes, int32_t height, int32_t width) {
    return {view_of(planes, height, width, "planes").grid, planes};
}

}  // namespace

extern "C" {

vosrt_status vosrt_cuda_device_count(int32_t *count) {
    return guarded(__func__, [&] {
        require(count, "count");
        *count = vosrt::cuda::count_gpus();
    });
}

vosrt_status vosrt_cuda_device_info(int32_t device, vosrt_cuda_device *info) {
    return guarded(__func__, [&] {
        const vosrt::cuda::Gpu gpu = vosrt::cuda::open_gpu(device);
        vosrt_cuda_device out{};
        out.architecture = gpu.architecture;
        out.multiprocessors = gpu.multiprocessors;
        out.driver = gpu.driver;
        out.runtime = gpu.runtime;
        out.total_bytes = gpu.total_bytes;
        out.free_bytes = gpu.free_bytes;
        gpu.name.copy(out.name, sizeof out.name - 1);
        vosrt::write_struct(out, info, "info");
    });
}

vosrt_status vosrt_cuda_allocate(int32_t device, size_t bytes, const char *what, void **memory) {
    return guarded(__func__, [&] {
        require(memory, "memory");
        *memory = nullptr;
        vosrt::cuda::Buffer buffer(device, std::max<size_t>(bytes, 1), what == nullptr ? "an array" : what);
        const std::lock_guard lock(allocated_lock);
        void *const at = buffer.data();
        allocated().emplace(at, std::move(buffer));
        *memory = at;
    });
}

void vosrt_cuda_free(void *memory) {
    std::map<void *, vosrt::cuda::Buffer>::node_type freed;  // at the end: that waits for the GPU, and nobody is to wait with it
    const std::lock_guard lock(allocated_lock);
    freed = allocated().extract(memory);
}

vosrt_status vosrt_cuda_allocate_host(size_t bytes, void **memory) {
    return guarded(__func__, [&] {
        require(memory, "memory");
        *memory = nullptr;
        *memory = vosrt::cuda::allocate_pinned(std::max<size_t>(bytes, 1));
    });
}

void vosrt_cuda_free_host(void *memory) {
    if (memory != nullptr) vosrt::cuda::free_pinned(memory);
}

vosrt_status vosrt_cuda_queue_create(int32_t device, vosrt_cuda_queue **queue) {
    return guarded(__func__, [&] {
        require(queue, "queue");
        *queue = nullptr;
        vosrt::cuda::open_gpu(device);
        *queue = vosrt::make_handle<vosrt_cuda_queue>(std::make_shared<vosrt::Behind<vosrt_cuda_queue>>(device));
    });
}

void vosrt_cuda_queue_destroy(vosrt_cuda_queue *queue) { vosrt::destroy_handle(queue); }

vosrt_status vosrt_cuda_queue_use_stream(vosrt_cuda_queue *queue, void *stream) {
    return guarded(__func__, queue, [&](const auto &at) { at->queue.use(stream); });
}

void *vosrt_cuda_queue_stream(const vosrt_cuda_queue *queue) {
    void *stream = nullptr;
    if (queue != nullptr) guarded(__func__, [&] { stream = vosrt::Call(queue)->queue.handle(); });
    return stream;
}

vosrt_status vosrt_cuda_queue_upload(vosrt_cuda_queue *queue, void *device, const void *host, size_t bytes) {
    return guarded(__func__, queue, [&](const auto &at) { at->queue.upload(device, host, bytes); });
}

vosrt_status vosrt_cuda_queue_download(vosrt_cuda_queue *queue, void *host, const void *device, size_t bytes) {
    return guarded(__func__, queue, [&](const auto &at) { at->queue.download(host, device, bytes); });
}

vosrt_status vosrt_cuda_queue_copy(vosrt_cuda_queue *queue, void *to, const void *from, size_t bytes) {
    return guarded(__func__, queue, [&](const auto &at) { at->queue.copy(to, from, bytes); });
}

vosrt_status vosrt_cuda_queue_wait(vosrt_cuda_queue *queue) {
    return guarded(__func__, queue, [&](const auto &at) { at->queue.wait(); });
}

vosrt_status vosrt_cuda_queue_resize_bgr(vosrt_cuda_queue *queue, const uint8_t *source, int32_t source_height,
                                         int32_t source_width, int64_t source_stride, uint8_t *target,
                                         int32_t target_height, int32_t target_width) {
    return guarded(__func__, queue, [&](const auto &at) {
        require(source, "source", target, "target");
        vosrt::check_image(source_height, source_width, source_stride, 3);
        vosrt::check_image(target_height, target_width, int64_t{3} * target_width, 3);
        at->queue.select();
        vosrt::cuda::launch_resize(at->queue, {.source = source,
                                               .source_height = source_height,
                                               .source_width = source_width,
                                               .source_stride = source_stride,
                                               .target = target,
                                               .height = target_height,
                                               .width = target_width});
    });
}

vosrt_status vosrt_cuda_queue_nv12_to_bgr(vosrt_cuda_queue *queue, const uint8_t *luma, const uint8_t *chroma, int64_t stride,
                                          int32_t height, int32_t width, int32_t bt709, int32_t full_range, uint8_t *target) {
    return guarded(__func__, queue, [&](const auto &at) {
        require(luma, "luma", chroma, "chroma", target, "target");
        vosrt::check_image(height, width, stride, 1);
        vosrt::check_image(height, width, int64_t{3} * width, 3);
        at->queue.select();
        vosrt::cuda::launch_nv12(at->queue, {.luma = luma,
                                             .chroma = chroma,
                                             .stride = stride,
                                             .height = height,
                                             .width = width,
                                             .red = bt709 ? 0.2126f : 0.299f,
                                             .blue = bt709 ? 0.0722f : 0.114f,
                                             .full_range = full_range != 0,
                                             .target = target});
    });
}

vosrt_status vosrt_cuda_event_create(int32_t device, vosrt_cuda_event **event) {
    return guarded(__func__, [&] {
        require(event, "event");
        *event = nullptr;
        *event = vosrt::make_handle<vosrt_cuda_event>(std::make_shared<vosrt::Behind<vosrt_cuda_event>>(device));
    });
}

void vosrt_cuda_event_destroy(vosrt_cuda_event *event) { vosrt::destroy_handle(event); }

vosrt_status vosrt_cuda_queue_record(vosrt_cuda_queue *queue, vosrt_cuda_event *event) {
    return guarded(__func__, queue, [&](const auto &at) { at->queue.record(vosrt::Call(event)->event); });
}

vosrt_status vosrt_cuda_queue_wait_for(vosrt_cuda_queue *queue, vosrt_cuda_event *event) {
    return guarded(__func__, queue, [&](const auto &at) { at->queue.wait_for(vosrt::Call(event)->event); });
}

vosrt_status vosrt_cuda_event_wait(vosrt_cuda_event *event) {
    return guarded(__func__, event, [&](const auto &at) { at->event.wait(); });
}

vosrt_status vosrt_cuda_memory_use_stream(vosrt_memory *memory, void *stream) {
    return guarded(__func__, memory, [&](const auto &at) {
        vosrt::cuda::Queue &queue = memory_of(at).queue();
        queue.select();
        void *const before = queue.handle();
        const bool leaves_capture = queue.capturing();
        queue.use(stream);
        if (leaves_capture || queue.capturing()) return;  // a capture is not waited for: nothing of it runs
        queue.use(before);
        queue.wait();  // what was queued before must not be overtaken
        queue.use(stream);
    });
}

vosrt_status vosrt_cuda_memory_stream(const vosrt_memory *memory, void **stream) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(stream, "stream");
        *stream = memory_of(at).queue().handle();
    });
}

vosrt_status vosrt_cuda_memory_frame(vosrt_memory *memory, const vosrt_cuda_frame *frame) {
    return guarded(__func__, memory, [&](const auto &at) { memory_of(at).frame(task_of(frame, true)); });
}

vosrt_status vosrt_cuda_memory_time_frame(vosrt_memory *memory, const vosrt_cuda_frame *frame, float *ms) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(ms, "ms");
        memory_of(at).time_frame(task_of(frame, true), ms);
    });
}

vosrt_status vosrt_cuda_memory_labels(vosrt_memory *memory, const vosrt_cuda_frame *frame) {
    return guarded(__func__, memory, [&](const auto &at) {
        memory_of(at).queue().select();
        memory_of(at).label_pixels(task_of(frame, false));
    });
}

vosrt_status vosrt_cuda_memory_guide(vosrt_memory *memory, const uint8_t *bgr, int32_t height, int32_t width) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(bgr, "bgr");
        vosrt::check_image(height, width, int64_t{3} * width, 3);
        memory_of(at).guide_with(bgr, height, width);
    });
}

vosrt_status vosrt_cuda_memory_repeated(vosrt_memory *memory) {
    return guarded(__func__, memory, [&](const auto &at) { memory_of(at).repeated(); });
}

vosrt_status vosrt_cuda_memory_values(vosrt_memory *memory, int32_t reference, const float *at_reference,
                                      const float *recent, int32_t slots, int32_t channels, float *out) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(at_reference, "at_reference", recent, "recent", out, "out");
        memory_of(at).values(reference, at_reference, recent, slots, channels, out);
    });
}

vosrt_status vosrt_cuda_memory_planes(vosrt_memory *memory, float *planes, int32_t height, int32_t width) {
    return guarded(__func__, memory, [&](const auto &at) { memory_of(at).draw(planes_of(planes, height, width)); });
}

vosrt_status vosrt_cuda_memory_refine(vosrt_memory *memory, const float *logits, int32_t logits_height, int32_t logits_width,
                                      int32_t residual, float *planes, int32_t height, int32_t width) {
    return guarded(__func__, memory, [&](const auto &at) {
        memory_of(at).refine(view_of(logits, logits_height, logits_width, "logits"), residual != 0,
                             planes_of(planes, height, width));
    });
}

vosrt_status vosrt_cuda_memory_set_planes(vosrt_memory *memory, const float *planes, int32_t height, int32_t width) {
    return guarded(__func__, memory, [&](const auto &at) { memory_of(at).keep(view_of(planes, height, width, "planes")); });
}

vosrt_status vosrt_cuda_memory_show(vosrt_memory *memory, const float *planes, int32_t height, int32_t width) {
    return guarded(__func__, memory, [&](const auto &at) {
        memory_of(at).show(planes == nullptr ? vosrt::cuda::SoftView{} : view_of(planes, height, width, "planes"));
    });
}

vosrt_status vosrt_cuda_memory_mark_planes(vosrt_memory *memory, float *planes, int32_t height, int32_t width,
                                           const uint8_t *mask, int32_t mask_height, int32_t mask_width, int64_t stride) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(mask, "mask");
        vosrt::check_image(mask_height, mask_width, stride, 1);
        memory_of(at).mark(planes_of(planes, height, width), {VOSRT_FORMAT_GRAY, mask_height, mask_width, mask, stride, nullptr, 0});
    });
}

vosrt_status vosrt_cuda_memory_recordings(const vosrt_memory *memory, int64_t *count) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(count, "count");
        *count = memory_of(at).recordings();
    });
}

}  // extern "C"
