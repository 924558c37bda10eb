// vosrt_tensorrt.hpp - an engine for vosrt.hpp on TensorRT (10 or newer) or TensorRT-RTX, compiled into your program
// against their headers.
//
//     find_path(TENSORRT_INCLUDE_DIR NvInfer.h REQUIRED)
//     find_library(TENSORRT_LIBRARY NAMES nvinfer tensorrt_rtx REQUIRED)
//     find_package(CUDAToolkit REQUIRED)
//     target_include_directories(app PRIVATE ${TENSORRT_INCLUDE_DIR})
//     target_link_libraries(app PRIVATE vosrt::vosrt ${TENSORRT_LIBRARY} CUDA::cudart)
//
// The engine file is built beforehand, for this TensorRT and this GPU: `vos-export engine BUNDLE` writes it to BUNDLE/engines.
// Loading one runs what is in it: take engine files from where you take your program from.
//
//     auto bundle = vosrt::Bundle::open("bundle").value();
//     auto model = vosrt::Model::create(bundle, vosrt::TensorRt::open(bundle, "bundle/engines/NAME.engine").value()).value();
//
// With libvosrt_cuda, frames and embeddings stay on the GPU: TensorRt::enqueue runs the network between arrays there, and
// vosrt_cuda_memory_frame takes it from there; examples/vos_embed/vos_on_gpu.cpp does so.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "vosrt.hpp"

namespace vosrt {
inline namespace abi2 {

struct TensorRtOptions {
    int device = 0;  // CUDA's number of the GPU
};

// An execution context for each frame size, the last kMaxSizes of them, on one CUDA stream: streams of a model take turns.
class TensorRt : public Engine {
   public:
    static constexpr size_t kMaxSizes = 4;

    static Expected<std::unique_ptr<TensorRt>> open(const Bundle &bundle, const std::string &file,
                                                    const TensorRtOptions &options = {}) {
        std::ifstream stream(file, std::ios::binary);
        const std::vector<char> plan{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
        if (!stream || plan.empty()) return Error{VOSRT_INVALID_ARGUMENT, "cannot read the engine " + file};
        std::unique_ptr<TensorRt> engine(new TensorRt(bundle.info(), options));
        if (const std::string failure = engine->load(plan); !failure.empty())
            return Error{VOSRT_ENGINE_FAILED, "TensorRT cannot load " + file + ": " + failure};
        return engine;
    }

    ~TensorRt() override {
        cudaSetDevice(device_);
        ready_.clear();
        if (stream_ != nullptr) cudaStreamDestroy(stream_);
    }

    std::string name() const override { return "tensorrt, GPU " + std::to_string(device_); }
    bool serial() const override { return true; }
    bool has_threads() const override { return true; }  // the driver's; no part of CUDA survives a fork

    std::string encode(const vosrt_encode_task &task) override {
        std::string failure = text_of(cudaSetDevice(device_));  // the calling thread may be a new one
        Ready *ready = failure.empty() ? prepare(task, failure) : nullptr;
        if (failure.empty() && ready->frame == nullptr) failure = allocate(task, *ready);
        if (failure.empty())
            failure = text_of(cudaMemcpyAsync(ready->frame, task.bgr, frame_bytes(task), cudaMemcpyHostToDevice, stream_));
        if (failure.empty()) failure = run(*ready, ready->frame, ready->embedding, stream_);
        if (failure.empty())
            failure = text_of(
                cudaMemcpyAsync(task.embedding, ready->embedding, embedding_bytes(task), cudaMemcpyDeviceToHost, stream_));
        const std::string finished = text_of(cudaStreamSynchronize(stream_));  // whatever failed, nothing is still copying
        return failure.empty() ? finished : failure;
    }

    // As encode, but `bgr` and `embedding` are on the GPU, and the work is queued on `stream`: nothing is copied or waited for, but where a
    // size is new. A captured stream takes it into its graph from the second frame of a size on. Runs of one size share a context, so
    // they have to be on one stream, and not in several threads at once.
    std::string enqueue(const vosrt_encode_task &task, cudaStream_t stream) {
        std::string failure = text_of(cudaSetDevice(device_));
        Ready *ready = failure.empty() ? prepare(task, failure) : nullptr;
        return failure.empty() ? run(*ready, const_cast<uint8_t *>(task.bgr), task.embedding, stream) : failure;
    }

   private:
    // TensorRT tells why it failed in its log only. It keeps the log for as long as it is loaded, so there is one.
    class Log : public nvinfer1::ILogger {
       public:
        void log(Severity severity, const char *text) noexcept override {
            if (severity > Severity::kERROR) return;
            const std::lock_guard<std::mutex> lock(mutex_);
            try {
                last_ = text;
            } catch (...) {  // no memory for the text
            }
        }
        std::string last_words() {
            const std::lock_guard<std::mutex> lock(mutex_);
            std::string text;
            text.swap(last_);  // so that it is not taken for the words of a later failure
            return text.empty() ? "TensorRT gave no reason" : text;
        }

       private:
        std::mutex mutex_;
        std::string last_;
    };
    static Log &the_log() {
        static Log *log = new Log;  // outlives everything that may still write to it
        return *log;
    }

    TensorRt(const vosrt_bundle_info &info, const TensorRtOptions &options)
        : input_(info.input_name), output_(info.output_name), device_(options.device) {}

    std::string load(const std::vector<char> &plan) {
        std::string failure = text_of(cudaSetDevice(device_));
        if (failure.empty()) failure = text_of(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
        if (!failure.empty()) return failure;
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine_) return log_.last_words();
        failure = objection(input_, nvinfer1::TensorIOMode::kINPUT, nvinfer1::DataType::kUINT8, "u8");
        if (failure.empty()) failure = objection(output_, nvinfer1::TensorIOMode::kOUTPUT, nvinfer1::DataType::kFLOAT, "f32");
        if (!failure.empty()) return failure;
        return "";
    }

    // Why a tensor is not what the bundle says, or "".
    std::string objection(const std::string &name, nvinfer1::TensorIOMode mode, nvinfer1::DataType type, const char *wanted) const {
        if (engine_->getTensorIOMode(name.c_str()) == mode && engine_->getTensorDataType(name.c_str()) == type) return "";
        return std::string("it has no ") + (mode == nvinfer1::TensorIOMode::kINPUT ? "input " : "output ") + name + " of type " +
               wanted + "; it was built from another graph";
    }

    // What runs frames of one size.
    struct Ready {
        std::unique_ptr<nvinfer1::IExecutionContext> context;
        void *frame = nullptr, *embedding = nullptr;  // on the GPU, for tasks in host memory
        uint64_t used = 0;

        Ready() = default;
        Ready(const Ready &) = delete;
        Ready &operator=(const Ready &) = delete;
        ~Ready() {
            context.reset();
            if (frame != nullptr) cudaFree(frame);
            if (embedding != nullptr) cudaFree(embedding);
        }
    };

    // nullptr, and why, where it fails.
    Ready *prepare(const vosrt_encode_task &task, std::string &failure) {
        const auto size = std::make_pair(task.height, task.width);
        auto found = ready_.find(size);
        if (found == ready_.end()) {
            if (ready_.size() == kMaxSizes) failure = drop_oldest();
            auto fresh = std::make_unique<Ready>();
            if (failure.empty()) failure = set_up(task, *fresh);
            if (!failure.empty()) return nullptr;
            found = ready_.emplace(size, std::move(fresh)).first;
        }
        found->second->used = ++uses_;
        return found->second.get();
    }
    std::string drop_oldest() {
        const std::string failure = text_of(cudaDeviceSynchronize());  // it may still run, on any stream
        auto oldest = ready_.begin();
        for (auto each = ready_.begin(); each != ready_.end(); ++each)
            if (each->second->used < oldest->second->used) oldest = each;
        ready_.erase(oldest);
        return failure;
    }
    std::string set_up(const vosrt_encode_task &task, Ready &ready) {
        const int32_t profile = profile_for(task.height, task.width);
        if (profile < 0)
            return "the engine was not built for frames of " + std::to_string(task.height) + "x" + std::to_string(task.width) +
                   "; build it for them with vos-export engine --sizes";
        nvinfer1::Dims shape{};
        shape.nbDims = 4;
        shape.d[0] = 1;
        shape.d[1] = task.height;
        shape.d[2] = task.width;
        shape.d[3] = 3;
        ready.context.reset(engine_->createExecutionContext());
        if (!ready.context || !ready.context->setOptimizationProfileAsync(profile, stream_) ||
            !ready.context->setInputShape(input_.c_str(), shape))
            return log_.last_words();
        const nvinfer1::Dims out = ready.context->getTensorShape(output_.c_str());
        const int32_t wanted[] = {1, task.grid_height, task.grid_width, task.channels};
        bool same = out.nbDims == 4;
        for (int i = 0; same && i < 4; ++i) same = out.d[i] == wanted[i];
        if (!same) return "the engine's output has not the shape that the bundle says";
        return text_of(cudaStreamSynchronize(stream_));  // the profile is set for whatever stream comes
    }
    std::string allocate(const vosrt_encode_task &task, Ready &ready) {
        const std::string failure = text_of(cudaMalloc(&ready.embedding, embedding_bytes(task)));
        return failure.empty() ? text_of(cudaMalloc(&ready.frame, frame_bytes(task))) : failure;
    }
    std::string run(Ready &ready, void *frame, void *embedding, cudaStream_t stream) {
        const bool queued = ready.context->setTensorAddress(input_.c_str(), frame) &&
                            ready.context->setTensorAddress(output_.c_str(), embedding) && ready.context->enqueueV3(stream);
        return queued ? "" : log_.last_words();
    }

    // The first optimisation profile that takes frames of this size, or -1.
    int32_t profile_for(int32_t height, int32_t width) const {
        using Selector = nvinfer1::OptProfileSelector;
        for (int32_t i = 0; i < engine_->getNbOptimizationProfiles(); ++i) {
            const nvinfer1::Dims least = engine_->getProfileShape(input_.c_str(), i, Selector::kMIN);
            const nvinfer1::Dims most = engine_->getProfileShape(input_.c_str(), i, Selector::kMAX);
            if (least.nbDims == 4 && most.nbDims == 4 && least.d[1] <= height && height <= most.d[1] && least.d[2] <= width &&
                width <= most.d[2])
                return i;
        }
        return -1;
    }

    static size_t frame_bytes(const vosrt_encode_task &task) {
        return static_cast<size_t>(task.height) * static_cast<size_t>(task.width) * 3;
    }
    static size_t embedding_bytes(const vosrt_encode_task &task) {
        return static_cast<size_t>(task.grid_height) * static_cast<size_t>(task.grid_width) * static_cast<size_t>(task.channels) *
               sizeof(float);
    }
    static std::string text_of(cudaError_t status) {
        return status == cudaSuccess ? "" : std::string("CUDA: ") + cudaGetErrorString(status);
    }

    Log &log_ = the_log();
    const std::string input_, output_;
    const int device_;
    cudaStream_t stream_ = nullptr;
    uint64_t uses_ = 0;
    // Each outlives what is made from it.
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::map<std::pair<int32_t, int32_t>, std::unique_ptr<Ready>> ready_;  // by height and width
};

}  // namespace abi2
}  // namespace vosrt
