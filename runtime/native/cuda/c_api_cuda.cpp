// The C boundary of vosrt_cuda.h.
#include "vosrt_cuda.h"

#include <map>
#include <memory>
#include <mutex>

#include "c_api.hpp"
#include "session.hpp"

struct vosrt_cuda_queue {
    vosrt::cuda::Queue queue;
};
struct vosrt_cuda_event {
    vosrt::cuda::Event event;
};

namespace vosrt {

template <> inline constexpr size_t kFirstSize<vosrt_cuda_device> = 296;
template <> inline constexpr size_t kFirstSize<vosrt_cuda_frame> = 48;
static_assert(VOSRT_CUDA_STAGES == Memory::kStages);

}  // namespace vosrt

namespace {

using vosrt::guarded;
using vosrt::require;

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
    return {frame.embedding, frame.height, frame.width, frame.labels, frame.confidence, frame.totals};
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
    return guarded([&] {
        require(count, "count");
        *count = vosrt::cuda::count_gpus();
    });
}

vosrt_status vosrt_cuda_device_info(int32_t device, vosrt_cuda_device *info) {
    return guarded([&] {
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
    return guarded([&] {
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
    return guarded([&] {
        require(memory, "memory");
        *memory = nullptr;
        *memory = vosrt::cuda::allocate_pinned(std::max<size_t>(bytes, 1));
    });
}

void vosrt_cuda_free_host(void *memory) {
    if (memory != nullptr) vosrt::cuda::free_pinned(memory);
}

vosrt_status vosrt_cuda_queue_create(int32_t device, vosrt_cuda_queue **queue) {
    return guarded([&] {
        require(queue, "queue");
        *queue = nullptr;
        vosrt::cuda::open_gpu(device);
        *queue = new vosrt_cuda_queue{vosrt::cuda::Queue(device)};
    });
}

void vosrt_cuda_queue_destroy(vosrt_cuda_queue *queue) { delete queue; }

vosrt_status vosrt_cuda_queue_use_stream(vosrt_cuda_queue *queue, void *stream) {
    return guarded([&] {
        require(queue, "queue");
        queue->queue.use(stream);
    });
}

void *vosrt_cuda_queue_stream(const vosrt_cuda_queue *queue) { return queue == nullptr ? nullptr : queue->queue.handle(); }

vosrt_status vosrt_cuda_queue_upload(vosrt_cuda_queue *queue, void *device, const void *host, size_t bytes) {
    return guarded([&] {
        require(queue, "queue");
        queue->queue.upload(device, host, bytes);
    });
}

vosrt_status vosrt_cuda_queue_download(vosrt_cuda_queue *queue, void *host, const void *device, size_t bytes) {
    return guarded([&] {
        require(queue, "queue");
        queue->queue.download(host, device, bytes);
    });
}

vosrt_status vosrt_cuda_queue_copy(vosrt_cuda_queue *queue, void *to, const void *from, size_t bytes) {
    return guarded([&] {
        require(queue, "queue");
        queue->queue.copy(to, from, bytes);
    });
}

vosrt_status vosrt_cuda_queue_wait(vosrt_cuda_queue *queue) {
    return guarded([&] {
        require(queue, "queue");
        queue->queue.wait();
    });
}

vosrt_status vosrt_cuda_queue_resize_bgr(vosrt_cuda_queue *queue, const uint8_t *source, int32_t source_height,
                                         int32_t source_width, int64_t source_stride, uint8_t *target,
                                         int32_t target_height, int32_t target_width) {
    return guarded([&] {
        require(queue, "queue");
        require(source, "source");
        require(target, "target");
        vosrt::check_image(source_height, source_width, source_stride, 3);
        vosrt::check_image(target_height, target_width, int64_t{3} * target_width, 3);
        queue->queue.select();
        vosrt::cuda::launch_resize(queue->queue, {.source = source,
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
    return guarded([&] {
        require(queue, "queue");
        require(luma, "luma");
        require(chroma, "chroma");
        require(target, "target");
        vosrt::check_image(height, width, stride, 1);
        vosrt::check_image(height, width, int64_t{3} * width, 3);
        queue->queue.select();
        vosrt::cuda::launch_nv12(queue->queue, {.luma = luma,
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
    return guarded([&] {
        require(event, "event");
        *event = nullptr;
        *event = new vosrt_cuda_event{vosrt::cuda::Event(device)};
    });
}

void vosrt_cuda_event_destroy(vosrt_cuda_event *event) { delete event; }

vosrt_status vosrt_cuda_queue_record(vosrt_cuda_queue *queue, vosrt_cuda_event *event) {
    return guarded([&] {
        require(queue, "queue");
        require(event, "event");
        queue->queue.record(event->event);
    });
}

vosrt_status vosrt_cuda_queue_wait_for(vosrt_cuda_queue *queue, vosrt_cuda_event *event) {
    return guarded([&] {
        require(queue, "queue");
        require(event, "event");
        queue->queue.wait_for(event->event);
    });
}

vosrt_status vosrt_cuda_event_wait(vosrt_cuda_event *event) {
    return guarded([&] {
        require(event, "event");
        event->event.wait();
    });
}

vosrt_status vosrt_cuda_memory_use_stream(vosrt_memory *memory, void *stream) {
    return guarded([&] {
        require(memory, "memory");
        vosrt::cuda::Queue &queue = memory->memory.queue();
        queue.select();
        queue.wait();  // what was queued before must not be overtaken
        queue.use(stream);
    });
}

vosrt_status vosrt_cuda_memory_stream(const vosrt_memory *memory, void **stream) {
    return guarded([&] {
        require(memory, "memory");
        require(stream, "stream");
        *stream = memory->memory.queue().handle();
    });
}

vosrt_status vosrt_cuda_memory_frame(vosrt_memory *memory, const vosrt_cuda_frame *frame) {
    return guarded([&] {
        require(memory, "memory");
        memory->memory.frame(task_of(frame, true));
    });
}

vosrt_status vosrt_cuda_memory_time_frame(vosrt_memory *memory, const vosrt_cuda_frame *frame, float *ms) {
    return guarded([&] {
        require(memory, "memory");
        require(ms, "ms");
        memory->memory.time_frame(task_of(frame, true), ms);
    });
}

vosrt_status vosrt_cuda_memory_labels(vosrt_memory *memory, const vosrt_cuda_frame *frame) {
    return guarded([&] {
        require(memory, "memory");
        memory->memory.queue().select();
        memory->memory.label_pixels(task_of(frame, false));
    });
}

vosrt_status vosrt_cuda_memory_repeated(vosrt_memory *memory) {
    return guarded([&] {
        require(memory, "memory");
        memory->memory.repeated();
    });
}

vosrt_status vosrt_cuda_memory_values(vosrt_memory *memory, int32_t reference, const float *at_reference,
                                      const float *recent, int32_t slots, int32_t channels, float *out) {
    return guarded([&] {
        require(memory, "memory");
        require(at_reference, "at_reference");
        require(recent, "recent");
        require(out, "out");
        memory->memory.values(reference, at_reference, recent, slots, channels, out);
    });
}

vosrt_status vosrt_cuda_memory_planes(vosrt_memory *memory, float *planes, int32_t height, int32_t width) {
    return guarded([&] {
        require(memory, "memory");
        memory->memory.draw(planes_of(planes, height, width));
    });
}

vosrt_status vosrt_cuda_memory_refine(vosrt_memory *memory, const float *logits, int32_t logits_height, int32_t logits_width,
                                      int32_t residual, float *planes, int32_t height, int32_t width) {
    return guarded([&] {
        require(memory, "memory");
        memory->memory.refine(view_of(logits, logits_height, logits_width, "logits"), residual != 0,
                              planes_of(planes, height, width));
    });
}

vosrt_status vosrt_cuda_memory_set_planes(vosrt_memory *memory, const float *planes, int32_t height, int32_t width) {
    return guarded([&] {
        require(memory, "memory");
        memory->memory.keep(view_of(planes, height, width, "planes"));
    });
}

vosrt_status vosrt_cuda_memory_label_planes(vosrt_memory *memory, const float *planes, int32_t height, int32_t width,
                                            const vosrt_cuda_frame *frame) {
    return guarded([&] {
        require(memory, "memory");
        memory->memory.queue().select();
        memory->memory.label_pixels(task_of(frame, false), view_of(planes, height, width, "planes"));
    });
}

vosrt_status vosrt_cuda_memory_load(int32_t device, const uint8_t *data, size_t size, vosrt_memory **memory, vosrt_session *session) {
    return guarded([&] {
        require(data, "data");
        require(memory, "memory");
        *memory = nullptr;
        vosrt::SessionReader reader({data, size});
        auto loaded = std::unique_ptr<vosrt_memory>(new vosrt_memory{vosrt::Memory(reader.memory_options({}, device))});
        reader.read_into(loaded->memory);
        if (session != nullptr) vosrt::write_struct(reader.session(), session, "session");
        *memory = loaded.release();
    });
}

vosrt_status vosrt_cuda_memory_recordings(const vosrt_memory *memory, int64_t *count) {
    return guarded([&] {
        require(memory, "memory");
        require(count, "count");
        *count = memory->memory.recordings();
    });
}

}  // extern "C"
