// A GPU made of host memory, for tests. VOSRT_CUDA_EMULATED says what it is like: words like "shared=65536" (bytes of shared
// memory a block may have), "memory=1000000" (bytes of device memory), "devices=2", "none" (no driver), "old" (one that is too old).
#include "runtime_emulated.hpp"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <vector>

using Work = std::function<void()>;
using Clock = std::chrono::steady_clock;

struct Capture {
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread = std::this_thread::get_id();
    std::vector<Work> work;
    std::set<cudaStream_t> unjoined;  // streams that work was forked to, and not brought back from
    bool valid = true;
};

struct CUstream_st {
    int device;
    std::shared_ptr<Capture> capture;
    int64_t position = 0;
};
struct CUevent_st {
    int device;
    Clock::time_point at;
    std::weak_ptr<Capture> capture;  // that it was recorded in
    bool captured = false;
    cudaStream_t stream = nullptr;
    int64_t position = 0;
};
struct CUgraph_st {
    std::vector<Work> work;
};
struct CUgraphExec_st {
    std::vector<Work> work;
    int of_host = 0;
};

namespace {

std::recursive_mutex gpu;  // several threads may use it

vosrt::cuda::emulated::Runtime host{};  // nothing in it: work is done at once
bool hosted() { return host.submit != nullptr; }

int64_t setting(const char *name, int64_t otherwise) {
    const char *text = std::getenv("VOSRT_CUDA_EMULATED");
    const char *found = text == nullptr ? nullptr : std::strstr(text, name);
    if (found == nullptr) return otherwise;
    found += std::strlen(name);
    return *found == '=' ? std::atoll(found + 1) : 1;
}

int64_t total_bytes() { return setting("memory", int64_t{1} << 34); }
std::atomic<int64_t> used_bytes = 0;

thread_local cudaError_t last = cudaSuccess;
thread_local int current = 0;
std::atomic<unsigned> contexts = 0;
std::atomic<int> lost = 0;  // what every call gives once the context is lost
std::map<std::string, cudaError_t> failing;

cudaError_t give(int status) {
    if (status >= 700 && status < 900) lost = status;
    if (lost != 0) status = lost;
    if (status != 0) last = static_cast<cudaError_t>(status);
    return static_cast<cudaError_t>(status);
}

// What a call that needs a context begins with.
cudaError_t enter(const char *function) {
    contexts |= 1u << current;
    const std::lock_guard lock(gpu);
    const auto found = failing.find(function);
    if (found == failing.end()) return give(0);
    const cudaError_t status = found->second;
    failing.erase(found);
    return give(status);
}
#define ENTER() \
    if (const cudaError_t entered = enter(__func__); entered != cudaSuccess) return entered

CUstream_st legacy{0, nullptr, 0};
CUstream_st &at(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy ? legacy : *stream; }

std::set<Capture *> &captures() {
    static std::set<Capture *> all;
    return all;
}

// What may wait for the GPU, or allocate, is refused during a capture unless that is relaxed, and spoils it.
cudaError_t refused_by_captures() {
    cudaError_t status = cudaSuccess;
    for (Capture *each : captures())
        if (each->mode == cudaStreamCaptureModeGlobal ||
            (each->mode == cudaStreamCaptureModeThreadLocal && each->thread == std::this_thread::get_id())) {
            each->valid = false;
            status = cudaErrorStreamCaptureUnsupported;
        }
    return give(status);
}

// Sizes of what was allocated, by address.
struct Allocation {
    size_t bytes;
    bool pinned;
};
std::map<const char *, Allocation> &allocations() {
    static auto *all = new std::map<const char *, Allocation>;
    return *all;
}
bool is_pinned(const void *memory) {
    const std::lock_guard lock(gpu);
    const auto *where = static_cast<const char *>(memory);
    auto after = allocations().upper_bound(where);
    if (after == allocations().begin()) return false;
    --after;
    return after->second.pinned && where < after->first + after->second.bytes;
}

cudaError_t submit(cudaStream_t stream, Work work) {
    if (hosted()) return give(host.submit(stream, new Work(std::move(work))));
    const std::lock_guard lock(gpu);
    CUstream_st &queue = at(stream);
    ++queue.position;
    if (queue.capture == nullptr) {
        work();
        return cudaSuccess;
    }
    if (!queue.capture->valid) return give(cudaErrorStreamCaptureInvalidated);
    if (stream != queue.capture->origin) queue.capture->unjoined.insert(stream);
    queue.capture->work.push_back(std::move(work));
    return cudaSuccess;
}

cudaError_t allocate(void **memory, size_t bytes, bool pinned) {
    const std::lock_guard lock(gpu);
    if (const cudaError_t status = refused_by_captures(); status != cudaSuccess) return status;
    if (!pinned && static_cast<int64_t>(bytes) > total_bytes() - used_bytes) return give(cudaErrorMemoryAllocation);
    void *const made = ::operator new(bytes, std::align_val_t{256});
    if (hosted())
        if (const int status = host.allocated(made, bytes, pinned); status != 0) {
            ::operator delete(made, std::align_val_t{256});
            return give(status);
        }
    if (!pinned) {
        used_bytes += static_cast<int64_t>(bytes);
        std::memset(made, 0xff, bytes);  // memory of a GPU is not zero
    }
    allocations()[static_cast<const char *>(made)] = {bytes, pinned};
    *memory = made;
    return cudaSuccess;
}

cudaError_t release(void *memory) {
    if (memory == nullptr) return cudaSuccess;
    if (hosted())
        if (const int status = host.freed(memory); status != 0) return give(status);
    const std::lock_guard lock(gpu);
    if (const cudaError_t status = refused_by_captures(); status != cudaSuccess) return status;
    const auto found = allocations().find(static_cast<const char *>(memory));
    if (found == allocations().end()) return give(cudaErrorInvalidValue);
    if (!found->second.pinned) used_bytes -= static_cast<int64_t>(found->second.bytes);
    allocations().erase(found);
    ::operator delete(memory, std::align_val_t{256});
    return cudaSuccess;
}

}  // namespace

void vosrt::cuda::emulated::launch(cudaStream_t stream, size_t shared_bytes, size_t allowed, Work work) {
    if (enter("a kernel's launch") != cudaSuccess) return;
    if (shared_bytes > std::max<size_t>(allowed, 48 << 10)) {
        give(cudaErrorInvalidValue);
        return;
    }
    if (!hosted() && &at(stream) != &legacy && at(stream).device != current) {
        give(cudaErrorInvalidResourceHandle);
        return;
    }
    submit(stream, std::move(work));
}

cudaError_t cudaGetLastError() {
    const cudaError_t status = lost != 0 ? static_cast<cudaError_t>(lost.load()) : last;
    last = cudaSuccess;
    return status;
}
const char *cudaGetErrorString(cudaError_t status) {
    switch (status) {
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
        default: return status >= 900 ? "operation not permitted when stream is capturing" : "emulated error";
    }
}
const char *cudaGetErrorName(cudaError_t status) {
    switch (status) {
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
        case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
        case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
        case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
        case cudaErrorStreamCaptureUnjoined: return "cudaErrorStreamCaptureUnjoined";
        case cudaErrorStreamCaptureIsolation: return "cudaErrorStreamCaptureIsolation";
        default: return "cudaError";
    }
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = setting("none", 0) ? 0 : setting("old", 0) ? 11040
                                                          : 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
    *count = static_cast<int>(setting("devices", 1));
    return static_cast<cudaError_t>(setting("broken", 0));
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    *properties = {"emulated GPU", 9, 0, 4, static_cast<size_t>(setting("shared", 232448))};
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= setting("devices", 1)) return give(cudaErrorInvalidDevice);
    current = device;
    ENTER();
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    ENTER();
    *total = static_cast<size_t>(total_bytes());
    *free = static_cast<size_t>(std::max<int64_t>(0, total_bytes() - used_bytes));
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **memory, size_t bytes) {
    ENTER();
    return allocate(memory, bytes, false);
}
cudaError_t cudaFree(void *memory) {
    ENTER();
    return release(memory);
}
cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    ENTER();
    return allocate(memory, bytes, true);
}
cudaError_t cudaFreeHost(void *memory) {
    ENTER();
    return release(memory);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    ENTER();
    *stream = new CUstream_st{current, nullptr, 0};
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    ENTER();
    const std::lock_guard lock(gpu);
    if (stream->capture != nullptr) captures().erase(stream->capture.get());
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    ENTER();
    if (hosted()) return give(host.synchronise(stream));
    const std::lock_guard lock(gpu);
    if (at(stream).capture == nullptr) return cudaSuccess;
    at(stream).capture->valid = false;
    return give(cudaErrorStreamCaptureUnsupported);
}

// From memory that is not pinned, the bytes are taken before the call returns; into such memory, the call waits.
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    ENTER();
    if (hosted() && kind == cudaMemcpyHostToDevice && !is_pinned(from)) {
        const auto *first = static_cast<const char *>(from);
        return submit(stream, [to, staged = std::vector<char>(first, first + bytes)] { std::memcpy(to, staged.data(), staged.size()); });
    }
    const cudaError_t status = submit(stream, [=] { std::memcpy(to, from, bytes); });
    const bool waits = hosted() && kind == cudaMemcpyDeviceToHost && !is_pinned(to);
    return status == cudaSuccess && waits ? give(host.synchronise(stream)) : status;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes, size_t rows,
                              cudaMemcpyKind, cudaStream_t stream) {
    ENTER();
    return submit(stream, [=] {
        for (size_t row = 0; row < rows; ++row)
            std::memcpy(static_cast<char *>(to) + row * to_stride, static_cast<const char *>(from) + row * from_stride, bytes);
    });
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    ENTER();
    return submit(stream, [=] { std::memset(memory, value, bytes); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    ENTER();
    *event = new CUevent_st{.device = current, .at = {}, .capture = {}};
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    ENTER();
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    ENTER();
    if (hosted()) return give(host.record(event, stream));
    const std::lock_guard lock(gpu);
    CUstream_st &queue = at(stream);
    if (&queue != &legacy && queue.device != event->device) return give(cudaErrorInvalidResourceHandle);
    event->at = Clock::now();
    event->capture = queue.capture;
    event->captured = queue.capture != nullptr;
    event->stream = stream;
    event->position = queue.position;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    ENTER();
    if (hosted()) return give(host.wait(event));
    const std::lock_guard lock(gpu);
    if (!event->captured) return cudaSuccess;
    if (const auto capture = event->capture.lock()) capture->valid = false;
    return give(cudaErrorCapturedEvent);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    ENTER();
    if (start->stream == nullptr || end->stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    *ms = std::chrono::duration<float, std::milli>(end->at - start->at).count();
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    ENTER();
    if (hosted()) return give(host.wait_for(stream, event));
    const std::lock_guard lock(gpu);
    CUstream_st &queue = at(stream);
    const auto from = event->capture.lock();
    if (event->stream == nullptr) return cudaSuccess;         // it was never recorded
    if (queue.capture != nullptr && from != queue.capture) {  // the captured work cannot depend on what is outside it
        queue.capture->valid = false;
        return give(from == nullptr ? cudaErrorStreamCaptureIsolation : cudaErrorStreamCaptureMerge);
    }
    if (from == nullptr) return event->captured ? give(cudaErrorCapturedEvent) : cudaSuccess;
    if (queue.capture == nullptr) {  // the stream joins the capture
        queue.capture = from;
        from->unjoined.insert(stream);
    } else if (event->position == at(event->stream).position) {
        from->unjoined.erase(event->stream);
    }
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    ENTER();
    *status = cudaStreamCaptureStatusNone;
    const std::lock_guard lock(gpu);
    if (hosted())
        *status = host.is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    else if (const auto &capture = at(stream).capture)
        *status = capture->valid ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    ENTER();
    if (&at(stream) == &legacy) return give(cudaErrorStreamCaptureUnsupported);
    if (hosted()) return give(host.begin_capture(stream, mode));
    const std::lock_guard lock(gpu);
    if (stream->capture != nullptr) return give(cudaErrorIllegalState);
    stream->capture = std::make_shared<Capture>(Capture{.origin = stream, .mode = mode, .work = {}, .unjoined = {}});
    captures().insert(stream->capture.get());
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    ENTER();
    *graph = nullptr;
    if (hosted()) {
        const int made = host.end_capture(stream);
        if (made == 0) return give(cudaErrorStreamCaptureInvalidated);
        *graph = reinterpret_cast<cudaGraph_t>(static_cast<intptr_t>(made));
        return cudaSuccess;
    }
    const std::lock_guard lock(gpu);
    const std::shared_ptr<Capture> capture = at(stream).capture;
    if (capture == nullptr || capture->origin != stream) return give(cudaErrorIllegalState);
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
        return give(cudaErrorStreamCaptureWrongThread);
    captures().erase(capture.get());
    for (const cudaStream_t each : capture->unjoined) at(each).capture = nullptr;
    stream->capture = nullptr;
    if (!capture->valid) return give(cudaErrorStreamCaptureInvalidated);
    if (!capture->unjoined.empty()) return give(cudaErrorStreamCaptureUnjoined);
    *graph = new CUgraph_st{std::move(capture->work)};
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *runnable, cudaGraph_t graph, unsigned long long) {
    ENTER();
    if (hosted())
        *runnable = new CUgraphExec_st{{}, static_cast<int>(reinterpret_cast<intptr_t>(graph))};
    else
        *runnable = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    ENTER();
    if (!hosted()) delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t runnable) {
    ENTER();
    if (runnable->of_host != 0 && hosted()) host.destroy(runnable->of_host);
    delete runnable;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t runnable, cudaStream_t stream) {
    ENTER();
    if (hosted()) return give(host.launch(runnable->of_host, stream));
    return submit(stream, [work = &runnable->work] {
        for (const Work &each : *work) each();
    });
}

void vosrt_cuda_emulated_use(const vosrt::cuda::emulated::Runtime *runtime) {
    host = runtime == nullptr ? vosrt::cuda::emulated::Runtime{} : *runtime;
}
void vosrt_cuda_emulated_run(void *work) {
    const std::lock_guard lock(gpu);
    (*static_cast<Work *>(work))();
}
void vosrt_cuda_emulated_forget(void *work) { delete static_cast<Work *>(work); }
void vosrt_cuda_emulated_fail(const char *function, int status) {
    const std::lock_guard lock(gpu);
    if (function == nullptr) {
        failing.clear();
        lost = 0;
        last = cudaSuccess;
    } else {
        failing[function] = static_cast<cudaError_t>(status);
    }
}
unsigned vosrt_cuda_emulated_contexts() { return contexts.exchange(0); }
