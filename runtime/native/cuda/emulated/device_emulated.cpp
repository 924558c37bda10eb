// A GPU made of host memory, for tests. VOSRT_CUDA_EMULATED says what it is like: words like "shared=65536" (bytes of shared
// memory a block may have), "memory=1000000" (bytes of device memory), "none" (no GPU), "old" (a driver that is too old).
#include "device_emulated.hpp"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "error.hpp"

namespace vosrt::cuda {
namespace {

std::recursive_mutex gpu;  // there is one, and several threads may use it

emulated::Runtime host{};  // nothing in it: work is done at once
bool hosted() { return host.submit != nullptr; }

void check(int status, const char *call) {
    if (status != 0) throw Error(VOSRT_INTERNAL, std::string("CUDA failed in ") + call + ": " + std::to_string(status));
}

int64_t setting(const char *name, int64_t otherwise) {
    const char *text = std::getenv("VOSRT_CUDA_EMULATED");
    const char *found = text == nullptr ? nullptr : std::strstr(text, name);
    if (found == nullptr) return otherwise;
    found += std::strlen(name);
    return *found == '=' ? std::atoll(found + 1) : 1;
}

std::atomic<int64_t> used_bytes = 0;

}  // namespace

struct Recording {
    std::vector<std::function<void()>> work;
    int of_host = 0;
};
void FreeRecording::operator()(Recording *recording) const {
    if (recording->of_host != 0 && hosted()) host.destroy(recording->of_host);
    delete recording;
}

namespace {

std::map<const void *, Recording *> &recordings() {
    static std::map<const void *, Recording *> all;
    return all;
}

// Pinned memory by its address, to its size.
std::map<const char *, size_t> &pinned() {
    static std::map<const char *, size_t> all;
    return all;
}
bool is_pinned(const void *memory) {
    const std::lock_guard lock(gpu);
    const auto *at = static_cast<const char *>(memory);
    const auto after = pinned().upper_bound(at);
    return after != pinned().begin() && at < std::prev(after)->first + std::prev(after)->second;
}

}  // namespace

void emulated::enqueue(Queue &queue, std::function<void()> work) {
    if (hosted()) return host.submit(queue.handle(), new std::function<void()>(std::move(work)));
    const std::lock_guard lock(gpu);
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
    data_ = ::operator new(bytes, std::align_val_t{256});
    used_bytes += static_cast<int64_t>(bytes);
    if (hosted()) check(host.allocated(data_, bytes, 0), "cudaMalloc");
    std::memset(data_, 0xff, bytes);  // memory of a GPU is not zero
}

Buffer::~Buffer() {
    if (data_ == nullptr) return;
    if (hosted()) host.freed(data_);
    used_bytes -= static_cast<int64_t>(bytes_);
    ::operator delete(data_, std::align_val_t{256});
}

void *allocate_pinned(size_t bytes) {
    void *memory = ::operator new(bytes);
    if (hosted()) check(host.allocated(memory, bytes, 1), "cudaMallocHost");
    const std::lock_guard lock(gpu);
    pinned().emplace(static_cast<const char *>(memory), bytes);
    return memory;
}
void free_pinned(void *memory) noexcept {
    if (hosted()) host.freed(memory);
    const std::lock_guard lock(gpu);
    pinned().erase(static_cast<const char *>(memory));
    ::operator delete(memory);
}

Event::Event(int32_t) : handle_(new char) {}
Event::~Event() { delete static_cast<char *>(handle_); }
void Event::wait() const {
    if (hosted()) check(host.wait(handle_), "cudaEventSynchronize");
}

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
    const std::lock_guard lock(gpu);
    recordings().erase(used_);
    delete static_cast<char *>(own_);
}
void Queue::use(void *stream) { used_ = stream == nullptr ? own_ : stream; }
void Queue::select() const {}

// From memory that is not pinned, the bytes are taken before the call returns; into such memory, the call waits.
void Queue::upload(void *device, const void *source, size_t bytes) {
    if (!hosted() || is_pinned(source)) return copy(device, source, bytes);
    const auto *from = static_cast<const char *>(source);
    emulated::enqueue(*this, [device, staged = std::vector<char>(from, from + bytes)] {
        std::memcpy(device, staged.data(), staged.size());
    });
}
void Queue::download(void *target, const void *device, size_t bytes) {
    copy(target, device, bytes);
    if (hosted() && !is_pinned(target)) wait();
}
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
    if (hosted()) check(host.synchronise(used_), "cudaStreamSynchronize");
}

void Queue::record(const Event &event) {
    if (hosted()) check(host.record(event.handle(), used_), "cudaEventRecord");
}
void Queue::wait_for(const Event &event) {
    if (hosted()) check(host.wait_for(used_, event.handle()), "cudaStreamWaitEvent");
}

bool Queue::capturing() const {
    if (hosted()) return host.is_capturing(used_) != 0;
    const std::lock_guard lock(gpu);
    return recordings().count(used_) > 0;
}
void Queue::begin_capture() {
    if (hosted()) return check(host.begin_capture(used_), "cudaStreamBeginCapture");
    const std::lock_guard lock(gpu);
    recordings()[used_] = new Recording;
}
Graph Queue::end_capture() {
    if (hosted()) {
        Graph graph(new Recording);
        graph->of_host = host.end_capture(used_);
        check(graph->of_host == 0, "cudaStreamEndCapture");
        return graph;
    }
    const std::lock_guard lock(gpu);
    Graph graph(recordings().at(used_));
    recordings().erase(used_);
    return graph;
}
void Queue::drop_capture() noexcept {
    try {
        end_capture();
    } catch (const Error &) {  // what was recorded is of no use
    }
}
void Queue::launch(const Graph &graph) {
    if (hosted()) return check(host.launch(graph->of_host, used_), "cudaGraphLaunch");
    const std::lock_guard lock(gpu);
    for (const auto &work : graph->work) work();
}

}  // namespace vosrt::cuda

void vosrt_cuda_emulated_use(const vosrt::cuda::emulated::Runtime *runtime) {
    vosrt::cuda::host = runtime == nullptr ? vosrt::cuda::emulated::Runtime{} : *runtime;
}
void vosrt_cuda_emulated_run(void *work) {
    const std::lock_guard lock(vosrt::cuda::gpu);
    (*static_cast<std::function<void()> *>(work))();
}
void vosrt_cuda_emulated_forget(void *work) { delete static_cast<std::function<void()> *>(work); }
