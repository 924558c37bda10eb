// A GPU's memory and work queue, with failures turned into vosrt::Error. device_cuda.cpp has it on the CUDA runtime,
// emulated/device_emulated.cpp in host memory, for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace vosrt::cuda {

struct Gpu {
    std::string name;
    int32_t architecture = 0;  // compute capability, e.g. 90
    int32_t multiprocessors = 0;
    int64_t shared_bytes = 0;  // that a block may have
    int64_t total_bytes = 0, free_bytes = 0;
    int32_t driver = 0, runtime = 0;  // CUDA versions, e.g. 13000
};

int32_t count_gpus();  // throws Error where there is no driver that this build can use
// Throws Error: no such GPU, or one that this build has no code for.
Gpu open_gpu(int32_t device);

// Device memory; freed with the object. `what` names it in the error where there is not enough.
class Buffer {
   public:
    Buffer() = default;
    Buffer(int32_t device, size_t bytes, const char *what);
    ~Buffer();
    Buffer(Buffer &&other) noexcept { swap(other); }
    Buffer &operator=(Buffer &&other) noexcept {
        swap(other);
        return *this;
    }

    template <class T = std::byte>
    T *data() const {
        return static_cast<T *>(data_);
    }
    size_t bytes() const { return bytes_; }

   private:
    void swap(Buffer &other) {
        std::swap(device_, other.device_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    int32_t device_ = 0;
    void *data_ = nullptr;
    size_t bytes_ = 0;
};

// Host memory that the GPU copies from and to while the processor goes on.
void *allocate_pinned(size_t bytes);  // throws Error
void free_pinned(void *memory) noexcept;

// A place in a queue that the host can wait for.
class Event {
   public:
    explicit Event(int32_t device);
    ~Event();
    Event(const Event &) = delete;
    Event &operator=(const Event &) = delete;

    void *handle() const { return handle_; }
    void wait() const;  // the calling thread does; at once if it was never recorded

   private:
    void *handle_ = nullptr;
};

// Times what is queued between its marks.
class Stopwatch {
   public:
    Stopwatch(int32_t device, size_t stages);
    ~Stopwatch();
    Stopwatch(const Stopwatch &) = delete;
    Stopwatch &operator=(const Stopwatch &) = delete;

    void mark(class Queue &queue);  // the beginning, then the end of each stage
    void read(float *ms) const;     // of each stage, in milliseconds; waits for the last one

   private:
    std::vector<void *> marks_;
    size_t next_ = 0;
};

// Recorded work that is launched with one call.
struct Recording;
struct FreeRecording {
    void operator()(Recording *recording) const;
};
using Graph = std::unique_ptr<Recording, FreeRecording>;

// A CUDA stream: what is queued here runs in order. Its own, or a host program's.
class Queue {
   public:
    explicit Queue(int32_t device);
    ~Queue();
    Queue(const Queue &) = delete;
    Queue &operator=(const Queue &) = delete;

    void use(void *stream);  // a cudaStream_t of the host's from now on; nullptr = the own one again
    void *handle() const { return used_; }
    void select() const;  // make the GPU the calling thread's

    void upload(void *device, const void *host, size_t bytes);
    void download(void *host, const void *device, size_t bytes);
    void copy(void *to, const void *from, size_t bytes);
    // Rows of `bytes`, `to_stride` and `from_stride` bytes apart.
    void copy_rows(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes, size_t rows);
    void fill(void *device, uint8_t value, size_t bytes);
    void zero(void *device, size_t bytes) { fill(device, 0, bytes); }
    void wait();
    void record(const Event &event);
    void wait_for(const Event &event);  // what is queued from now on does

    bool capturing() const;  // whether the host program captures what is queued
    // Until end_capture, work is recorded on a stream that nobody else has: on a shared one, what other threads queue meanwhile
    // would become part of the graph, and their waits would fail.
    void begin_capture();
    Graph end_capture();
    void drop_capture() noexcept;
    void launch(const Graph &graph);

   private:
    int32_t device_;
    void *own_ = nullptr, *used_ = nullptr;
    void *private_ = nullptr, *shared_ = nullptr;  // of captures; what was used before one
};

}  // namespace vosrt::cuda
