// A GPU made of host memory, for tests. VOSRT_CUDA_EMULATED says what it is like: words like "shared=65536" (bytes of shared
// memory a block may have), "memory=1000000" (bytes of device memory), "none" (no GPU), "old" (a driver that is too old).
#include "device_emulated.hpp"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <vector>

#include "error.hpp"

namespace vosrt::cuda {
namespace {

int64_t setting(const char *name, int64_t otherwise) {
    const char *text = std::getenv("VOSRT_CUDA_EMULATED");
    const char *found = text == nullptr ? nullptr : std::strstr(text, name);
    if (found == nullptr) return otherwise;
    found += std::strlen(name);
    return *found == '=' ? std::atoll(found + 1) : 1;
}

int64_t used_bytes = 0;

}  // namespace

struct Recording {
    std::vector<std::function<void()>> work;
};
void FreeRecording::operator()(Recording *recording) const { delete recording; }

namespace {

std::map<const void *, Recording *> &recordings() {
    static std::map<const void *, Recording *> all;
    return all;
}

}  // namespace

void emulated::enqueue(Queue &queue, std::function<void()> work) {
    const auto found = recordings().find(queue.handle());
    if (found == recordings().end())
        work();
    else
        found->second->work.push_back(std::move(work));
}

int32_t count_gpus() {
    if (setting("none", 0))
        throw Error(VOSRT_UNSUPPORTED, "no NVIDIA driver (emulated); install the driver of your GPU, or use device 'cpu'");
    if (setting("old", 0))
        throw Error(VOSRT_UNSUPPORTED, "the NVIDIA driver runs CUDA 11.4 (emulated); expected 13.0 or newer: upgrade the driver, "
                                       "or use device 'cpu'");
    return 1;
}

Gpu open_gpu(int32_t device) {
    const int32_t count = count_gpus();
    if (device < 0 || device >= count)
        invalid("CUDA device " + std::to_string(device) + " was asked for; there are " + std::to_string(count) + ", from 0");
    return {.name = "emulated GPU",
            .architecture = 90,
            .multiprocessors = 4,
            .shared_bytes = setting("shared", 232448),
            .total_bytes = setting("memory", int64_t{1} << 34),
            .free_bytes = setting("memory", int64_t{1} << 34) - used_bytes,
            .driver = 13000,
            .runtime = 13000};
}

Buffer::Buffer(int32_t device, size_t bytes, const char *what) : device_(device), bytes_(bytes) {
    if (bytes == 0) return;
    const int64_t free = setting("memory", int64_t{1} << 34) - used_bytes;
    if (static_cast<int64_t>(bytes) > free)
        throw Error(VOSRT_OUT_OF_MEMORY, std::string("CUDA failed in cudaMalloc of ") + std::to_string(bytes) + " bytes for " + what +
                                             ": out of memory (" + std::to_string(free) + " bytes are free)");
    used_bytes += static_cast<int64_t>(bytes);
    data_ = ::operator new(bytes, std::align_val_t{256});
    std::memset(data_, 0xff, bytes);  // memory of a GPU is not zero
}

Buffer::~Buffer() {
    if (data_ == nullptr) return;
    used_bytes -= static_cast<int64_t>(bytes_);
    ::operator delete(data_, std::align_val_t{256});
}

void *allocate_pinned(size_t bytes) { return ::operator new(bytes); }
void free_pinned(void *memory) noexcept { ::operator delete(memory); }

Event::Event(int32_t) : handle_(new char) {}
Event::~Event() { delete static_cast<char *>(handle_); }
void Event::wait() const {}

using Clock = std::chrono::steady_clock;

Stopwatch::Stopwatch(int32_t, size_t stages) {
    for (size_t i = 0; i <= stages; ++i) marks_.push_back(new Clock::time_point);
}
Stopwatch::~Stopwatch() {
    for (void *mark : marks_) delete static_cast<Clock::time_point *>(mark);
}
void Stopwatch::mark(Queue &) { *static_cast<Clock::time_point *>(marks_.at(next_++)) = Clock::now(); }
void Stopwatch::read(float *ms) const {
    if (next_ != marks_.size()) throw Error(VOSRT_INTERNAL, "CUDA failed in cudaEventElapsedTime: a stage was not marked");
    for (size_t i = 0; i + 1 < marks_.size(); ++i) {
        const auto took = *static_cast<Clock::time_point *>(marks_[i + 1]) - *static_cast<Clock::time_point *>(marks_[i]);
        ms[i] = std::chrono::duration<float, std::milli>(took).count();
    }
}

Queue::Queue(int32_t device) : device_(device), own_(new char), used_(own_) {}
Queue::~Queue() {
    recordings().erase(used_);
    delete static_cast<char *>(own_);
}
void Queue::use(void *stream) { used_ = stream == nullptr ? own_ : stream; }
void Queue::select() const {}

void Queue::upload(void *device, const void *host, size_t bytes) { copy(device, host, bytes); }
void Queue::download(void *host, const void *device, size_t bytes) { copy(host, device, bytes); }
void Queue::copy(void *to, const void *from, size_t bytes) {
    emulated::enqueue(*this, [=] { std::memcpy(to, from, bytes); });
}
void Queue::copy_rows(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes, size_t rows) {
    emulated::enqueue(*this, [=] {
        for (size_t row = 0; row < rows; ++row)
            std::memcpy(static_cast<char *>(to) + row * to_stride, static_cast<const char *>(from) + row * from_stride, bytes);
    });
}
void Queue::zero(void *device, size_t bytes) {
    emulated::enqueue(*this, [=] { std::memset(device, 0, bytes); });
}
void Queue::wait() {
    if (capturing()) throw Error(VOSRT_INTERNAL, "CUDA failed in cudaStreamSynchronize: the stream is being captured");
}

void Queue::record(const Event &) {}
void Queue::wait_for(const Event &) {}

bool Queue::capturing() const { return recordings().count(used_) > 0; }
void Queue::begin_capture() { recordings()[used_] = new Recording; }
Graph Queue::end_capture() {
    Graph graph(recordings().at(used_));
    recordings().erase(used_);
    return graph;
}
void Queue::drop_capture() noexcept { end_capture(); }
void Queue::launch(const Graph &graph) {
    for (const auto &work : graph->work) work();
}

}  // namespace vosrt::cuda
