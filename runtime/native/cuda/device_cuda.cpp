// device.hpp on the CUDA runtime, which is linked statically and looks for the driver when it is first called.
#include "device_cuda.hpp"

#include <utility>

#include "device.hpp"

namespace vosrt::cuda {
namespace {

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }
std::string mib(size_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

cudaStream_t stream_of(void *handle) { return static_cast<cudaStream_t>(handle); }

// What a destructor's call gives cannot be thrown, and must not be taken for a failure of the next launch.
void ignore(cudaError_t status) {
    if (status != cudaSuccess) cudaGetLastError();
}

// What fails before any work was queued says that the GPU cannot be used here, not that its work failed.
void require(cudaError_t status, const char *call) {
    if (status == cudaSuccess || status == cudaErrorMemoryAllocation) return check_cuda(status, call);
    cudaGetLastError();
    throw Error(VOSRT_UNSUPPORTED, std::string("the NVIDIA driver cannot be used: ") + call + " failed: " + cudaGetErrorString(status) + " (" +
                                       cudaGetErrorName(status) + "); see what nvidia-smi says, or use device 'cpu'");
}

cudaStream_t new_stream() {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return stream;
}

}  // namespace

int32_t count_gpus() {
    int driver = 0, runtime = 0, count = 0;
    require(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    require(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    if (driver == 0)
        throw Error(VOSRT_UNSUPPORTED, "no NVIDIA driver here; install the driver of your GPU, or use device 'cpu'");
    if (driver / 1000 < runtime / 1000)
        throw Error(VOSRT_UNSUPPORTED, "the NVIDIA driver runs CUDA " + version_text(driver) + " here; expected " +
                                           version_text(runtime / 1000 * 1000) + " or newer: upgrade the driver, or use device 'cpu'");
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
        cudaGetLastError();
        throw Error(VOSRT_UNSUPPORTED,
                    "the NVIDIA driver offers no GPU; see what nvidia-smi and CUDA_VISIBLE_DEVICES say, or use device 'cpu'");
    }
    require(status, "cudaGetDeviceCount");
    return count;
}

Gpu open_gpu(int32_t device) {
    const int32_t count = count_gpus();
    if (device < 0 || device >= count)
        throw Error(VOSRT_INVALID_ARGUMENT, "CUDA device " + std::to_string(device) + " was asked for; there are " +
                                                std::to_string(count) + ", from 0");
    cudaDeviceProp properties{};
    require(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    Gpu gpu;
    gpu.name = properties.name;
    gpu.architecture = 10 * properties.major + properties.minor;
    gpu.multiprocessors = properties.multiProcessorCount;
    gpu.shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
    require(cudaDriverGetVersion(&gpu.driver), "cudaDriverGetVersion");
    require(cudaRuntimeGetVersion(&gpu.runtime), "cudaRuntimeGetVersion");
    const std::string here = gpu.name + " (sm_" + std::to_string(gpu.architecture) + ")";
    if (gpu.architecture < 80)
        throw Error(VOSRT_UNSUPPORTED, here + " is too old; expected sm_80 (Ampere) or newer: use device 'cpu'");
    require(cudaSetDevice(device), "cudaSetDevice");
    size_t free = 0, total = 0;
    require(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    gpu.free_bytes = static_cast<int64_t>(free);
    gpu.total_bytes = static_cast<int64_t>(total);
    return gpu;
}

Buffer::Buffer(int32_t device, size_t bytes, const char *what) : device_(device), bytes_(bytes) {
    if (bytes == 0) return;
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    const cudaError_t status = cudaMalloc(&data_, bytes);
    if (status == cudaSuccess) return;
    cudaGetLastError();
    std::string call = "cudaMalloc of " + mib(bytes) + " for " + what;
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) == cudaSuccess) call += " (" + mib(free) + " of " + mib(total) + " are free)";
    fail_cuda(status, call);
}

Buffer::~Buffer() {
    if (data_ == nullptr) return;
    ignore(cudaSetDevice(device_));
    ignore(cudaFree(data_));  // waits for work that uses it
}

void *allocate_pinned(size_t bytes) {
    void *memory = nullptr;
    const cudaError_t status = cudaMallocHost(&memory, bytes);
    if (status == cudaSuccess) return memory;
    cudaGetLastError();
    fail_cuda(status, "cudaMallocHost of " + mib(bytes));
}
void free_pinned(void *memory) noexcept { ignore(cudaFreeHost(memory)); }

Event::Event(int32_t device) {
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    handle_ = event;
}
Event::~Event() { ignore(cudaEventDestroy(static_cast<cudaEvent_t>(handle_))); }
void Event::wait() const { check_cuda(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)), "cudaEventSynchronize"); }

Stopwatch::Stopwatch(int32_t device, size_t stages) {
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    marks_.reserve(stages + 1);
    for (size_t i = 0; i <= stages; ++i) {
        cudaEvent_t event = nullptr;
        check_cuda(cudaEventCreate(&event), "cudaEventCreate");
        marks_.push_back(event);
    }
}
Stopwatch::~Stopwatch() {
    for (void *mark : marks_) ignore(cudaEventDestroy(static_cast<cudaEvent_t>(mark)));
}
void Stopwatch::mark(Queue &queue) {
    check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(marks_.at(next_++)), stream_of(queue.handle())), "cudaEventRecord");
}
void Stopwatch::read(float *ms) const {
    check_cuda(cudaEventSynchronize(static_cast<cudaEvent_t>(marks_.back())), "cudaEventSynchronize");
    for (size_t i = 0; i + 1 < marks_.size(); ++i)
        check_cuda(cudaEventElapsedTime(ms + i, static_cast<cudaEvent_t>(marks_[i]), static_cast<cudaEvent_t>(marks_[i + 1])),
                   "cudaEventElapsedTime");
}

struct Recording {
    cudaGraphExec_t runnable = nullptr;
};
void FreeRecording::operator()(Recording *recording) const {
    if (recording->runnable != nullptr) ignore(cudaGraphExecDestroy(recording->runnable));
    delete recording;
}

Queue::Queue(int32_t device) : device_(device) {
    select();
    own_ = used_ = new_stream();
}
Queue::~Queue() {
    ignore(cudaSetDevice(device_));
    ignore(cudaStreamDestroy(stream_of(own_)));
    if (private_ != nullptr) ignore(cudaStreamDestroy(stream_of(private_)));
}
void Queue::use(void *stream) { used_ = stream == nullptr ? own_ : stream; }
void Queue::select() const { check_cuda(cudaSetDevice(device_), "cudaSetDevice"); }

void Queue::upload(void *device, const void *host, size_t bytes) {
    select();
    check_cuda(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_of(used_)), "cudaMemcpyAsync to the GPU");
}
void Queue::download(void *host, const void *device, size_t bytes) {
    select();
    check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_of(used_)), "cudaMemcpyAsync from the GPU");
}
void Queue::copy(void *to, const void *from, size_t bytes) {
    select();
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(used_)), "cudaMemcpyAsync on the GPU");
}
void Queue::copy_rows(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes, size_t rows) {
    select();
    check_cuda(cudaMemcpy2DAsync(to, to_stride, from, from_stride, bytes, rows, cudaMemcpyDeviceToDevice, stream_of(used_)),
               "cudaMemcpy2DAsync");
}
void Queue::fill(void *device, uint8_t value, size_t bytes) {
    select();
    check_cuda(cudaMemsetAsync(device, value, bytes, stream_of(used_)), "cudaMemsetAsync");
}
void Queue::wait() {
    select();
    check_cuda(cudaStreamSynchronize(stream_of(used_)), "cudaStreamSynchronize");
}

void Queue::record(const Event &event) {
    select();
    check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(event.handle()), stream_of(used_)), "cudaEventRecord");
}
void Queue::wait_for(const Event &event) {
    select();
    check_cuda(cudaStreamWaitEvent(stream_of(used_), static_cast<cudaEvent_t>(event.handle()), 0), "cudaStreamWaitEvent");
}

bool Queue::capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t asked = cudaStreamIsCapturing(stream_of(used_), &status);
    ignore(asked);
    if (asked == cudaErrorStreamCaptureImplicit) return false;  // the default stream, and somebody captures another one
    check_cuda(asked, "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
}
void Queue::begin_capture() {
    if (private_ == nullptr) private_ = new_stream();
    // Relaxed: a garbage collector may free memory of the GPU on this thread in between, which spoils a stricter capture.
    check_cuda(cudaStreamBeginCapture(stream_of(private_), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
    shared_ = std::exchange(used_, private_);
}
Graph Queue::end_capture() {
    used_ = shared_;
    cudaGraph_t recorded = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_of(private_), &recorded);
    if (ended != cudaSuccess) ignore(cudaStreamDestroy(stream_of(std::exchange(private_, nullptr))));  // it may still be in capture
    check_cuda(ended, "cudaStreamEndCapture");
    Graph graph(new Recording);
    const cudaError_t status = cudaGraphInstantiate(&graph->runnable, recorded, 0);
    ignore(cudaGraphDestroy(recorded));
    check_cuda(status, "cudaGraphInstantiate");
    return graph;
}
void Queue::drop_capture() noexcept {
    used_ = shared_;
    cudaGraph_t recorded = nullptr;
    if (cudaStreamEndCapture(stream_of(private_), &recorded) == cudaSuccess && recorded != nullptr) ignore(cudaGraphDestroy(recorded));
    cudaGetLastError();
}
void Queue::launch(const Graph &graph) {
    check_cuda(cudaGraphLaunch(graph->runnable, stream_of(used_)), "cudaGraphLaunch");
}

}  // namespace vosrt::cuda
