// Follows the objects of a mask with frames, embeddings and masks on the GPU: TensorRT's network and libvosrt_cuda's memory are queued on
// one CUDA stream. A frame goes up and its labels come down, both by way of pinned memory, and the next frame is read meanwhile.
//
//     ffmpeg -i clip.mp4 -vf scale=856:480 -f rawvideo -pix_fmt bgr24 frames.bgr
//     vos_on_gpu BUNDLE FILE.engine 480 856 frames.bgr MASK LABELS          # - is standard input or output
//
// MASK is u8 [480, 856], ids of the objects in the first frame; LABELS receives as many bytes a frame.
#include <vosrt_cuda.h>

#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vosrt_tensorrt.hpp>

static void check(vosrt_status status) {
    if (status != VOSRT_OK) throw std::runtime_error(vosrt_last_error());
}

template <class T, void (*kFree)(T *)>
struct Free {
    void operator()(T *handle) const { kFree(handle); }
};
template <class T, void (*kFree)(T *)>
using Owned = std::unique_ptr<T, Free<T, kFree>>;
using Queue = Owned<vosrt_cuda_queue, vosrt_cuda_queue_destroy>;
using Event = Owned<vosrt_cuda_event, vosrt_cuda_event_destroy>;
using Memory = Owned<vosrt_memory, vosrt_memory_destroy>;
using OnGpu = Owned<void, vosrt_cuda_free>;
using Pinned = Owned<void, vosrt_cuda_free_host>;

static OnGpu on_gpu(size_t bytes, const char *what) {
    void *memory = nullptr;
    check(vosrt_cuda_allocate(0, bytes, what, &memory));
    return OnGpu(memory);
}
static Pinned pinned(size_t bytes) {
    void *memory = nullptr;
    check(vosrt_cuda_allocate_host(bytes, &memory));
    return Pinned(memory);
}

struct Close {
    void operator()(std::FILE *file) const { std::fclose(file); }
};
static std::unique_ptr<std::FILE, Close> open_file(const std::string &name, const char *mode) {
    std::FILE *file = name == "-" ? (*mode == 'r' ? stdin : stdout) : std::fopen(name.c_str(), mode);
    if (file == nullptr) throw std::runtime_error("cannot open " + name);
    return std::unique_ptr<std::FILE, Close>(file);
}

static int64_t follow(char **arguments) {
    const auto bundle = vosrt::Bundle::open(arguments[1]).value();
    const auto network = vosrt::TensorRt::open(bundle, arguments[2]).value();
    const int32_t height = std::stoi(arguments[3]), width = std::stoi(arguments[4]);
    const auto frames = open_file(arguments[5], "rb"), marks = open_file(arguments[6], "rb"), results = open_file(arguments[7], "wb");
    const size_t pixels = static_cast<size_t>(height) * static_cast<size_t>(width);

    const vosrt_model_options model = bundle.model_options();
    vosrt_memory_options options = *model.memory;
    options.height = (height + 7) / 8;
    options.width = (width + 7) / 8;
    options.channels = model.channels;
    vosrt_memory *opened = nullptr;
    check(vosrt_memory_create(&options, &opened));
    const Memory memory(opened);
    vosrt_cuda_queue *made = nullptr;
    check(vosrt_cuda_queue_create(options.device, &made));
    const Queue queue(made);
    void *stream = vosrt_cuda_queue_stream(queue.get());
    check(vosrt_cuda_memory_use_stream(memory.get(), stream));

    const size_t values = static_cast<size_t>(options.height) * static_cast<size_t>(options.width) * static_cast<size_t>(options.channels);
    const OnGpu bgr = on_gpu(3 * pixels, "a frame"), embedding = on_gpu(values * sizeof(float), "an embedding"),
                labels = on_gpu(pixels, "labels");
    struct Slot {
        Pinned frame, labels;
        Event done;
        bool pending = false;
    } slots[2];
    for (Slot &slot : slots) {
        slot.frame = pinned(3 * pixels);
        slot.labels = pinned(pixels);
        vosrt_cuda_event *event = nullptr;
        check(vosrt_cuda_event_create(options.device, &event));
        slot.done.reset(event);
    }
    const auto write = [&](Slot &slot) {
        if (!slot.pending) return;
        check(vosrt_cuda_event_wait(slot.done.get()));
        if (std::fwrite(slot.labels.get(), 1, pixels, results.get()) != pixels) throw std::runtime_error("cannot write labels");
        slot.pending = false;
    };

    vosrt_encode_task task{};
    task.struct_size = sizeof task;
    task.height = height, task.width = width;
    task.grid_height = options.height, task.grid_width = options.width, task.channels = options.channels;
    task.bgr = static_cast<const uint8_t *>(bgr.get());
    task.embedding = static_cast<float *>(embedding.get());
    vosrt_cuda_frame frame{};
    frame.struct_size = sizeof frame;
    frame.height = frame.bgr_height = height, frame.width = frame.bgr_width = width;
    frame.embedding = task.embedding;
    frame.bgr = task.bgr;
    int64_t count = 0;
    for (;; ++count) {
        Slot &slot = slots[count % 2];
        write(slot);  // its labels, of the frame before the last; then both of its arrays are free
        if (std::fread(slot.frame.get(), 1, 3 * pixels, frames.get()) != 3 * pixels) break;
        check(vosrt_cuda_queue_upload(queue.get(), bgr.get(), slot.frame.get(), 3 * pixels));
        const std::string failure = network->enqueue(task, static_cast<cudaStream_t>(stream));
        if (!failure.empty()) throw std::runtime_error(failure);
        frame.labels = count == 0 ? nullptr : static_cast<uint8_t *>(labels.get());
        check(vosrt_cuda_memory_frame(memory.get(), &frame));
        if (count == 0) {
            if (std::fread(slot.labels.get(), 1, pixels, marks.get()) != pixels) throw std::runtime_error("the mask is too small");
            check(vosrt_memory_annotate(memory.get(), static_cast<uint8_t *>(slot.labels.get()), height, width, width));
            frame.labels = static_cast<uint8_t *>(labels.get());
            check(vosrt_cuda_memory_labels(memory.get(), &frame));
        }
        check(vosrt_cuda_queue_download(queue.get(), slot.labels.get(), labels.get(), pixels));
        check(vosrt_cuda_queue_record(queue.get(), slot.done.get()));
        slot.pending = true;
    }
    write(slots[(count + 1) % 2]);
    return count;
}

int main(int count, char **arguments) {
    if (count != 8) {
        std::cerr << "usage: vos_on_gpu BUNDLE FILE.engine HEIGHT WIDTH FRAMES MASK LABELS\n";
        return 2;
    }
    try {
        std::cerr << follow(arguments) << " frames\n";
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
