// vosrt_onnxruntime.hpp - an engine for vosrt.hpp on ONNX Runtime, compiled into your program against its C header.
//
//     find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h PATH_SUFFIXES onnxruntime REQUIRED)
//     find_library(ONNXRUNTIME_LIBRARY onnxruntime REQUIRED)
//     target_include_directories(app PRIVATE ${ONNXRUNTIME_INCLUDE_DIR})
//     target_link_libraries(app PRIVATE vosrt::vosrt ${ONNXRUNTIME_LIBRARY})
//
//     auto bundle = vosrt::Bundle::open("bundle").value();
//     auto model = vosrt::Model::create(bundle, vosrt::OnnxRuntime::open(bundle).value()).value();
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "vosrt.hpp"

namespace vosrt {
inline namespace abi1 {

struct OnnxRuntimeOptions {
    int threads = 0;  // inside one operator; 0 = one per processor
    // Adds execution providers, or any other setting, before the graph is loaded; empty = ONNX Runtime's CPU provider. A
    // status that it returns, e.g. of SessionOptionsAppendExecutionProvider_CUDA_V2, becomes the error of open().
    std::function<OrtStatus *(const OrtApi &api, OrtSessionOptions *options)> configure;
    std::string provider = "cpu";  // what `configure` adds, for descriptions
};

// One session takes frames of every size, from several threads at the same time.
class OnnxRuntime : public Engine {
   public:
    static Expected<std::unique_ptr<Engine>> open(const Bundle &bundle, const OnnxRuntimeOptions &options = {}) {
        auto path = bundle.graph_path("encoder");
        if (!path) return path.error();
        const OrtApi *api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
        if (api == nullptr)
            return Error{VOSRT_UNSUPPORTED, std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() +
                                                " is older than the header that this program was compiled with (API " +
                                                std::to_string(ORT_API_VERSION) + "); link a newer one"};
        std::unique_ptr<OnnxRuntime> engine(new OnnxRuntime(*api, bundle.info(), options.provider));
        if (const std::string failure = engine->load(path.value(), options); !failure.empty())
            return Error{VOSRT_ENGINE_FAILED, "ONNX Runtime cannot load " + path.value() + ": " + failure};
        return std::unique_ptr<Engine>(std::move(engine));
    }

    std::string name() const override { return "onnxruntime " + provider_; }

    std::string encode(const vosrt_encode_task &task) override {
        const int64_t in[] = {1, task.height, task.width, 3};
        const int64_t out[] = {1, task.grid_height, task.grid_width, task.channels};
        // Both tensors are views: ONNX Runtime reads the frame and writes the embedding where they lie.
        auto frame = none<OrtValue>(api_.ReleaseValue), embedding = none<OrtValue>(api_.ReleaseValue);
        std::string failure = view(const_cast<uint8_t *>(task.bgr), in, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, frame);
        if (failure.empty()) failure = view(task.embedding, out, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, embedding);
        if (!failure.empty()) return failure;
        const char *const inputs[] = {input_.c_str()}, *const outputs[] = {output_.c_str()};
        const OrtValue *const given[] = {frame.get()};
        OrtValue *wanted[] = {embedding.get()};
        return text_of(api_.Run(session_.get(), nullptr, inputs, given, 1, outputs, 1, wanted));
    }

   private:
    template <class T>
    using Handle = std::unique_ptr<T, void(ORT_API_CALL *)(T *)>;
    template <class T>
    static Handle<T> none(void(ORT_API_CALL *release)(T *)) {
        return Handle<T>(nullptr, release);
    }

    OnnxRuntime(const OrtApi &api, const vosrt_bundle_info &info, std::string provider)
        : api_(api),
          input_(info.input_name),
          output_(info.output_name),
          provider_(std::move(provider)),
          environment_(none<OrtEnv>(api.ReleaseEnv)),
          memory_(none<OrtMemoryInfo>(api.ReleaseMemoryInfo)),
          session_(none<OrtSession>(api.ReleaseSession)) {}

    std::string load(const std::string &path, const OnnxRuntimeOptions &options) {
        auto settings = none<OrtSessionOptions>(api_.ReleaseSessionOptions);
        const int threads = options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
        // Failures are returned; the log would repeat them on stderr.
        std::string failure = make(environment_, [&](OrtEnv **out) {
            return api_.CreateEnv(ORT_LOGGING_LEVEL_FATAL, "vosrt", out);
        });
        if (failure.empty())
            failure = make(memory_, [&](OrtMemoryInfo **out) {
                return api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out);
            });
        if (failure.empty()) failure = make(settings, [&](OrtSessionOptions **out) { return api_.CreateSessionOptions(out); });
        if (failure.empty()) failure = text_of(api_.SetIntraOpNumThreads(settings.get(), threads));
        // Idle workers must not burn the processors that matching and the host run on.
        if (failure.empty())
            failure = text_of(api_.AddSessionConfigEntry(settings.get(), "session.intra_op.allow_spinning", "0"));
        if (failure.empty() && options.configure) failure = text_of(options.configure(api_, settings.get()));
        if (failure.empty())
            failure = make(session_, [&](OrtSession **out) {
                const std::filesystem::path file(path);  // in the characters that this system's files are named with
                return api_.CreateSession(environment_.get(), file.c_str(), settings.get(), out);
            });
        return failure;
    }

    template <class T>
    std::string view(T *data, const int64_t (&shape)[4], ONNXTensorElementDataType type, Handle<OrtValue> &value) const {
        const size_t bytes = static_cast<size_t>(shape[1] * shape[2] * shape[3]) * sizeof(T);
        return make(value, [&](OrtValue **out) {
            return api_.CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes, shape, 4, type, out);
        });
    }

    template <class T, class Create>
    std::string make(Handle<T> &handle, const Create &create) const {
        T *made = nullptr;
        std::string failure = text_of(create(&made));
        handle.reset(made);
        return failure;
    }

    // What a status says, "" for success; releases it.
    std::string text_of(OrtStatus *status) const {
        if (status == nullptr) return "";
        std::string text = api_.GetErrorMessage(status);
        api_.ReleaseStatus(status);
        return text.empty() ? "ONNX Runtime gave no reason" : text;
    }

    const OrtApi &api_;
    const std::string input_, output_, provider_;
    Handle<OrtEnv> environment_;  // outlives the session
    Handle<OrtMemoryInfo> memory_;
    Handle<OrtSession> session_;
};

}  // namespace abi1
}  // namespace vosrt
