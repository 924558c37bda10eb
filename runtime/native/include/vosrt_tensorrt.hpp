// vosrt_tensorrt.hpp - an engine for vosrt.hpp on TensorRT (10 or newer) or TensorRT-RTX, compiled into your program
// against their headers.
//
//     find_path(TENSORRT_INCLUDE_DIR NvInfer.h REQUIRED)
//     find_library(TENSORRT_LIBRARY NAMES nvinfer tensorrt_rtx REQUIRED)
//     find_package(CUDAToolkit REQUIRED)
//     target_include_directories(app PRIVATE ${TENSORRT_INCLUDE_DIR})
//     target_link_libraries(app PRIVATE vosrt::vosrt ${TENSORRT_LIBRARY} CUDA::cudart)
//
// Engine files are built beforehand, for this TensorRT and this GPU: `vos-export engine BUNDLE` writes them to BUNDLE/engines.
// Loading one runs what is in it: take engine files from where you take your program from.
//
//     auto bundle = vosrt::Bundle::open("bundle").value();
//     auto model = vosrt::Model::create(bundle, vosrt::TensorRt::open(bundle, "bundle/engines/NAME.engine").value()).value();
//
// With libvosrt_cuda, frames and embeddings stay on the GPU: TensorRt::enqueue runs the network between arrays there, and
// vosrt_cuda_memory_frame takes it from there; examples/vos_embed/vos_on_gpu.cpp does so. Masks are refined there with vosrt_stream_refine
// and TensorRtOptions::stream.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "vosrt_networks.hpp"

namespace vosrt {
inline namespace abi2 {

struct TensorRtOptions {
    int device = 0;  // CUDA's number of the GPU
    // Engine files of a bundle's mask networks, both or none; without them, streams follow objects by the encoder alone.
    std::string mask_encoder{}, decoder{};
    // For libvosrt_cuda: the CUDA stream that its memories use (vosrt_cuda_memory_use_stream), and not the default one. The mask networks
    // are queued on it, with their arrays on the GPU (VOSRT_ENGINE_ON_GPU), and `enqueue` encodes frames there. nullptr: host memory.
    cudaStream_t stream = nullptr;
};

// A feature map on the GPU.
struct TensorRtMap {
    std::shared_ptr<void> data;
    std::vector<int64_t> shape;
};

// Per network an execution context for each size, the last kMaxSizes of them, all on one CUDA stream: streams of a model take turns.
class TensorRt : public Networks<TensorRtMap> {
   public:
    static constexpr size_t kMaxSizes = 4;

    // `file` is the encoder's engine.
    static Expected<std::unique_ptr<TensorRt>> open(const Bundle &bundle, const std::string &file,
                                                    const TensorRtOptions &options = {}) {
        if (options.mask_encoder.empty() != options.decoder.empty())
            return Error{VOSRT_INVALID_ARGUMENT, "options.mask_encoder and options.decoder belong together; one of them is empty"};
        if (!options.decoder.empty() && bundle.info().context_name == nullptr)
            return Error{VOSRT_INVALID_ARGUMENT, std::string("the bundle ") + bundle.info().path + " has no mask networks"};
        std::unique_ptr<TensorRt> engine(new TensorRt(bundle.info(), options));
        for (const std::string &each : {file, options.mask_encoder, options.decoder}) {
            if (engine->networks_.size() > kEncoder && !engine->has_mask_networks()) break;
            std::ifstream stream(each, std::ios::binary);
            const std::vector<char> plan{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
            if (!stream || plan.empty()) return Error{VOSRT_INVALID_ARGUMENT, "cannot read the engine " + each};
            if (const std::string failure = engine->load(plan); !failure.empty())
                return Error{VOSRT_ENGINE_FAILED, "TensorRT cannot load " + each + ": " + failure};
        }
        return engine;
    }

    ~TensorRt() override {
        cudaSetDevice(device_);
        networks_.clear();
        spare_.clear();
        if (stream_ != nullptr) cudaStreamDestroy(stream_);
    }

    std::string name() const override { return "tensorrt, GPU " + std::to_string(device_); }
    bool serial() const override { return true; }
    bool has_threads() const override { return true; }  // the driver's; no part of CUDA survives a fork
    bool on_gpu() const override { return given_ != nullptr && has_mask_networks(); }

    // As encode, but `bgr` and `embedding` are on the GPU, and the work is queued on `stream`: nothing is copied or waited for, but where a
    // size is new. A captured stream takes it into its graph from the second frame of a size on, where no features are asked for. Runs of
    // one size share a context, so they have to be on one stream; where masks are refined, on that of the options. Features go to `release`.
    std::string enqueue(const vosrt_encode_task &task, cudaStream_t stream) {
        return encode_with(task, [&](const Call &call) {
            const std::lock_guard<std::mutex> lock(running_);
            return queue(call, stream, false);
        });
    }

    // Maps are used again: their memory is not freed while frames go on.
    void release(void *features) override {
        const std::unique_ptr<Maps> maps(static_cast<Maps *>(features));
        const std::lock_guard<std::mutex> lock(running_);
        spare_.push_back(std::move(*maps));
        if (spare_.size() <= kMaxSizes) return;
        cudaSetDevice(device_);
        spare_.erase(spare_.begin());
    }

   private:
    using Shapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;  // of inputs, by name

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
        : Networks(info, !options.decoder.empty()), device_(options.device), given_(options.stream) {}

    // What runs a network at one size.
    struct Ready {
        std::map<std::string, std::shared_ptr<void>> held;  // on the GPU: arrays of tasks in host memory, and maps that nobody keeps
        std::unique_ptr<nvinfer1::IExecutionContext> context;
        uint64_t used = 0;
    };
    struct Network {
        std::unique_ptr<nvinfer1::ICudaEngine> engine;
        std::map<Shapes, std::unique_ptr<Ready>> ready;
    };

    // The next network, in the order of NetworkRole.
    std::string load(const std::vector<char> &plan) {
        std::string failure = text_of(cudaSetDevice(device_));
        if (failure.empty() && stream_ == nullptr) failure = text_of(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
        if (!failure.empty()) return failure;
        if (!runtime_) runtime_.reset(nvinfer1::createInferRuntime(log_));
        Network network;
        if (runtime_) network.engine.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (!network.engine) return log_.last_words();
        failure = objection(*network.engine, static_cast<NetworkRole>(networks_.size()));
        networks_.push_back(std::move(network));
        return failure;
    }

    // Why an engine is not of a network, or "".
    std::string objection(const nvinfer1::ICudaEngine &engine, NetworkRole role) const {
        std::set<std::string> inputs{input_}, outputs = map_names();
        outputs.insert(output_);
        if (role == kMaskEncoder) inputs = {"frames", "masks", "context"}, outputs = {"values"};
        if (role == kDecoder) inputs = {"readout", "values", "res3", "res2"}, outputs = {"logits"};
        const auto check = [&](const std::string &name, bool is_input) -> std::string {
            const bool u8 = is_input && role != kDecoder && name == (role == kEncoder ? input_ : "frames");
            const auto mode = is_input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
            if (engine.getTensorIOMode(name.c_str()) == mode &&
                engine.getTensorDataType(name.c_str()) == (u8 ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT))
                return "";
            return std::string("it has no ") + (is_input ? "input " : "output ") + name + " of type " + (u8 ? "u8" : "f32") +
                   "; it was built from another graph";
        };
        std::string failure;
        for (const std::string &each : inputs)
            if (failure.empty()) failure = check(each, true);
        for (const std::string &each : outputs)
            if (failure.empty()) failure = check(each, false);
        return failure;
    }

    std::string run(const Call &call) override {
        const std::lock_guard<std::mutex> lock(running_);
        if (call.network != kEncoder && given_ != nullptr) return queue(call, given_, false);
        std::string failure = queue(call, stream_, true);
        const std::string finished = text_of(cudaStreamSynchronize(stream_));  // whatever failed, nothing is still copying
        return failure.empty() ? finished : failure;
    }

    // Queues a run on a stream, with copies where the arrays of the call are in host memory.
    std::string queue(const Call &call, cudaStream_t stream, bool on_host) {
        std::string failure = text_of(cudaSetDevice(device_));  // the calling thread may be a new one
        Ready *ready = failure.empty() ? prepare(call, failure) : nullptr;
        if (ready == nullptr) return failure;
        const auto bind = [&](const std::string &name, void *memory) {
            if (failure.empty() && !ready->context->setTensorAddress(name.c_str(), memory)) failure = log_.last_words();
        };
        const auto place = [&](const NetworkArray &array) {
            if (!on_host) return array.data;
            std::shared_ptr<void> &held = ready->held[array.name];
            if (held == nullptr && failure.empty()) failure = allocate(array.bytes(), held);
            return held.get();
        };
        for (const NetworkArray &each : call.inputs) {
            void *const memory = place(each);
            if (on_host && failure.empty()) failure = text_of(cudaMemcpyAsync(memory, each.data, each.bytes(), cudaMemcpyHostToDevice, stream));
            bind(each.name, memory);
        }
        for (const auto &[name, map] : call.maps) bind(name, map->data.get());
        void *const output = place(call.output);
        bind(call.output.name, output);
        if (call.network == kEncoder && failure.empty()) {
            Maps maps = maps_of(*ready, call.keep != nullptr, failure);
            for (const auto &[name, map] : maps) bind(name, map.data.get());
            if (call.keep != nullptr) *call.keep = std::move(maps);
        }
        if (failure.empty() && !ready->context->enqueueV3(stream)) failure = log_.last_words();
        if (on_host && failure.empty())
            failure = text_of(cudaMemcpyAsync(call.output.data, output, call.output.bytes(), cudaMemcpyDeviceToHost, stream));
        return failure;
    }

    // Memory for the encoder's maps: what was released, or new; or, for those that nobody keeps, the context's own.
    Maps maps_of(Ready &ready, bool kept, std::string &failure) {
        Maps maps;
        for (const std::string &name : map_names()) {
            const nvinfer1::Dims dims = ready.context->getTensorShape(name.c_str());
            maps[name].shape.assign(dims.d, dims.d + dims.nbDims);
        }
        const auto fits = [&](const Maps &spare) {
            return std::equal(spare.begin(), spare.end(), maps.begin(), maps.end(),
                              [](const auto &a, const auto &b) { return a.first == b.first && a.second.shape == b.second.shape; });
        };
        if (const auto found = std::find_if(spare_.begin(), spare_.end(), fits); kept && found != spare_.end()) {
            maps = std::move(*found);
            spare_.erase(found);
            return maps;
        }
        for (auto &[name, map] : maps) {
            if (!kept) map.data = ready.held[name];
            if (map.data == nullptr && failure.empty()) failure = allocate(NetworkArray(name, static_cast<float *>(nullptr), map.shape).bytes(), map.data);
            if (!kept) ready.held[name] = map.data;
        }
        return maps;
    }

    static Shapes shapes_of(const Call &call) {
        Shapes shapes;
        for (const NetworkArray &each : call.inputs) shapes.emplace_back(each.name, each.shape);
        for (const auto &[name, map] : call.maps) shapes.emplace_back(name, map->shape);
        return shapes;
    }

    // nullptr, and why, where it fails.
    Ready *prepare(const Call &call, std::string &failure) {
        Network &network = networks_[call.network];
        const Shapes shapes = shapes_of(call);
        auto found = network.ready.find(shapes);
        if (found == network.ready.end()) {
            if (network.ready.size() == kMaxSizes) failure = drop_oldest(network);
            auto fresh = std::make_unique<Ready>();
            if (failure.empty()) failure = set_up(*network.engine, call, shapes, *fresh);
            if (!failure.empty()) return nullptr;
            found = network.ready.emplace(shapes, std::move(fresh)).first;
        }
        found->second->used = ++uses_;
        return found->second.get();
    }
    std::string drop_oldest(Network &network) {
        const std::string failure = text_of(cudaDeviceSynchronize());  // it may still run, on any stream
        network.ready.erase(std::min_element(network.ready.begin(), network.ready.end(), [](const auto &a, const auto &b) {
            return a.second->used < b.second->used;
        }));
        return failure;
    }
    std::string set_up(nvinfer1::ICudaEngine &engine, const Call &call, const Shapes &shapes, Ready &ready) {
        const int32_t profile = profile_for(engine, shapes);
        if (profile < 0)
            return "the engine was not built for " + call.inputs.back().name + " of " + text_of(call.inputs.back().shape) +
                   "; build it for them with vos-export engine --sizes" + (call.network == kEncoder ? "" : " and --objects");
        ready.context.reset(engine.createExecutionContext());
        if (!ready.context || !ready.context->setOptimizationProfileAsync(profile, stream_)) return log_.last_words();
        for (const auto &[name, shape] : shapes) {
            nvinfer1::Dims dims{};
            dims.nbDims = static_cast<int32_t>(shape.size());
            std::copy(shape.begin(), shape.end(), dims.d);
            if (!ready.context->setInputShape(name.c_str(), dims)) return log_.last_words();
        }
        const nvinfer1::Dims out = ready.context->getTensorShape(call.output.name.c_str());
        const std::vector<int64_t> &wanted = call.output.shape;
        if (!std::equal(wanted.begin(), wanted.end(), out.d, out.d + std::max(out.nbDims, 0)))
            return "the engine's output has not the shape that the bundle says";
        return text_of(cudaStreamSynchronize(stream_));  // the profile is set for whatever stream comes
    }

    // The first optimisation profile that takes inputs of these shapes, or -1.
    static int32_t profile_for(const nvinfer1::ICudaEngine &engine, const Shapes &shapes) {
        using Selector = nvinfer1::OptProfileSelector;
        const auto takes = [&](int32_t profile, const std::string &name, const std::vector<int64_t> &shape) {
            const nvinfer1::Dims least = engine.getProfileShape(name.c_str(), profile, Selector::kMIN);
            const nvinfer1::Dims most = engine.getProfileShape(name.c_str(), profile, Selector::kMAX);
            bool fits = least.nbDims == static_cast<int32_t>(shape.size()) && most.nbDims == least.nbDims;
            for (size_t i = 0; fits && i < shape.size(); ++i) fits = least.d[i] <= shape[i] && shape[i] <= most.d[i];
            return fits;
        };
        for (int32_t i = 0; i < engine.getNbOptimizationProfiles(); ++i)
            if (std::all_of(shapes.begin(), shapes.end(), [&](const auto &each) { return takes(i, each.first, each.second); })) return i;
        return -1;
    }

    static std::string allocate(size_t bytes, std::shared_ptr<void> &to) {
        void *memory = nullptr;
        const std::string failure = text_of(cudaMalloc(&memory, bytes));
        if (failure.empty()) to.reset(memory, cudaFree);
        return failure;
    }
    static std::string text_of(cudaError_t status) {
        return status == cudaSuccess ? "" : std::string("CUDA: ") + cudaGetErrorString(status);
    }
    static std::string text_of(const std::vector<int64_t> &shape) {
        std::string text;
        for (const int64_t extent : shape) text += (text.empty() ? "" : "x") + std::to_string(extent);
        return text;
    }

    Log &log_ = the_log();
    const int device_;
    const cudaStream_t given_;
    cudaStream_t stream_ = nullptr;  // for tasks in host memory
    uint64_t uses_ = 0;
    std::mutex running_;       // contexts and spare maps are for one thread at a time
    std::vector<Maps> spare_;  // released, oldest first
    // Each outlives what is made from it.
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::vector<Network> networks_;  // by NetworkRole
};

}  // namespace abi2
}  // namespace vosrt
