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

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "vosrt_networks.hpp"

namespace vosrt {
inline namespace abi2 {

struct OnnxRuntimeOptions {
    int threads = 0;  // inside one operator; 0 = one per processor
    // "fp32", "int8" (of a bundle that carries it), or "auto": int8 where the bundle carries it and the processor has 8-bit dot
    // products and `configure` is empty.
    std::string precision = "auto";
    // Adds execution providers, or any other setting, before the graph is loaded; empty = ONNX Runtime's CPU provider. A
    // status that it returns, e.g. of SessionOptionsAppendExecutionProvider_CUDA_V2, becomes the error of open().
    std::function<OrtStatus *(const OrtApi &api, OrtSessionOptions *options)> configure;
    std::string provider = "cpu";  // what `configure` adds, for descriptions
};

using OrtMap = std::unique_ptr<OrtValue, void(ORT_API_CALL *)(OrtValue *)>;

// One session per network takes frames of every size, from several threads at the same time.
class OnnxRuntime : public Networks<OrtMap> {
   public:
    static Expected<std::unique_ptr<Engine>> open(const Bundle &bundle, const OnnxRuntimeOptions &options = {}) {
        const OrtApi *api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
        if (api == nullptr)
            return Error{VOSRT_UNSUPPORTED, std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() +
                                                " is older than the header that this program was compiled with (API " +
                                                std::to_string(ORT_API_VERSION) + "); link a newer one"};
        std::unique_ptr<OnnxRuntime> engine(new OnnxRuntime(*api, bundle.info(), options));
        std::string failure = engine->prepare();
        if (options.precision != "auto" && options.precision != "fp32" && options.precision != "int8")
            return Error{VOSRT_INVALID_ARGUMENT, "precision is '" + options.precision + "'; expected auto, fp32 or int8"};
        auto encoder = bundle.encoder_role(options.precision == "auto" && options.configure ? "fp32" : options.precision);
        if (!encoder) return encoder.error();
        const Status loaded = engine->load_graphs(bundle, encoder.value(), "ONNX Runtime", [&](std::string_view content) {
            return failure.empty() ? engine->load(content, options) : failure;
        });
        if (!loaded) return loaded.error();
        return std::unique_ptr<Engine>(std::move(engine));
    }

    std::string name() const override { return "onnxruntime " + provider_; }
    bool has_threads() const override { return has_threads_; }

   private:
    template <class T>
    using Handle = std::unique_ptr<T, void(ORT_API_CALL *)(T *)>;
    template <class T>
    static Handle<T> none(void(ORT_API_CALL *release)(T *)) {
        return Handle<T>(nullptr, release);
    }

    using Map = OrtMap;

    std::string run(const Call &call) override {
        const std::set<std::string> maps = call.keep == nullptr ? std::set<std::string>() : map_names();
        Run run(*this, sessions_[call.network].get());
        for (const NetworkArray &each : call.inputs) run.input(each);
        for (const auto &[name, map] : call.maps) run.input(name, *map);
        run.output(call.output);
        for (const std::string &map : maps) run.output(map);
        const std::string failure = run.finish();
        if (failure.empty() && call.keep != nullptr) run.move_outputs(*call.keep);
        return failure;
    }

    // One run of a session, whose tensors are views: ONNX Runtime reads and writes the stream's arrays where they lie.
    class Run {
       public:
        Run(const OnnxRuntime &engine, OrtSession *session) : engine_(engine), session_(session) {}

        void input(const NetworkArray &array) { add(input_names_, inputs_, array.name, view(array)); }
        void input(const std::string &name, const Map &map) { add(input_names_, inputs_, name, map.get()); }
        void output(const NetworkArray &array) { add(output_names_, outputs_, array.name, view(array)); }
        void output(const std::string &name) { add(output_names_, outputs_, name, nullptr); }  // ONNX Runtime allocates it
        // "" for success.
        std::string finish() {
            if (!failure_.empty()) return failure_;
            const std::vector<const OrtValue *> given(inputs_.begin(), inputs_.end());
            return engine_.text_of(engine_.api_.Run(session_, nullptr, input_names_.data(), given.data(), given.size(),
                                                    output_names_.data(), outputs_.size(), outputs_.data()));
        }
        // Of those that ONNX Runtime allocated.
        void move_outputs(Maps &maps) {
            for (size_t n = 1; n < outputs_.size(); ++n)
                maps.emplace(output_names_[n], Map(std::exchange(outputs_[n], nullptr), engine_.api_.ReleaseValue));
        }

       private:
        OrtValue *view(const NetworkArray &array) {
            const auto type = array.is_u8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
            auto value = none<OrtValue>(engine_.api_.ReleaseValue);
            const std::string failure = engine_.make(value, [&](OrtValue **out) {
                return engine_.api_.CreateTensorWithDataAsOrtValue(engine_.memory_.get(), array.data, array.bytes(), array.shape.data(),
                                                                   array.shape.size(), type, out);
            });
            if (failure_.empty()) failure_ = failure;
            views_.push_back(std::move(value));
            return views_.back().get();
        }
        static void add(std::vector<const char *> &names, std::vector<OrtValue *> &values, const std::string &name, OrtValue *value) {
            names.push_back(name.c_str());  // of the call, or of the set of maps, which outlive this
            values.push_back(value);
        }

        const OnnxRuntime &engine_;
        OrtSession *const session_;
        std::string failure_;
        std::vector<const char *> input_names_, output_names_;
        std::vector<OrtValue *> inputs_, outputs_;
        std::vector<Handle<OrtValue>> views_;
    };

    OnnxRuntime(const OrtApi &api, const vosrt_bundle_info &info, const OnnxRuntimeOptions &options)
        : Networks(info),
          api_(api),
          provider_(options.provider),
          has_threads_(options.threads != 1),
          environment_(none<OrtEnv>(api.ReleaseEnv)),
          memory_(none<OrtMemoryInfo>(api.ReleaseMemoryInfo)) {}

    std::string prepare() {
        // From 1.32 on it reports to its maker otherwise; this is read when the environment is made. A value that is set stands.
#if defined(_WIN32)
        if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) _putenv_s("ORT_DISABLE_TELEMETRY", "1");
#else
        setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
        // Failures are returned; the log would repeat them on stderr.
        const std::string failure = make(environment_, [&](OrtEnv **out) {
            return api_.CreateEnv(ORT_LOGGING_LEVEL_FATAL, "vosrt", out);
        });
        if (!failure.empty()) return failure;
        return make(memory_, [&](OrtMemoryInfo **out) {
            return api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out);
        });
    }

    std::string load(std::string_view content, const OnnxRuntimeOptions &options) {
        auto settings = none<OrtSessionOptions>(api_.ReleaseSessionOptions);
        const int threads = options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
        std::string failure = make(settings, [&](OrtSessionOptions **out) { return api_.CreateSessionOptions(out); });
        if (failure.empty()) failure = text_of(api_.SetIntraOpNumThreads(settings.get(), threads));
        // Idle workers must not burn the processors that matching and the host run on.
        if (failure.empty())
            failure = text_of(api_.AddSessionConfigEntry(settings.get(), "session.intra_op.allow_spinning", "0"));
        if (failure.empty() && options.configure) failure = text_of(options.configure(api_, settings.get()));
        if (!failure.empty()) return failure;
        auto session = none<OrtSession>(api_.ReleaseSession);
        failure = make(session, [&](OrtSession **out) {
            return api_.CreateSessionFromArray(environment_.get(), content.data(), content.size(), settings.get(), out);
        });
        sessions_.push_back(std::move(session));
        return failure;
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
    const std::string provider_;
    const bool has_threads_;
    Handle<OrtEnv> environment_;  // outlives the session
    Handle<OrtMemoryInfo> memory_;
    std::vector<Handle<OrtSession>> sessions_;  // encoder, and mask encoder and decoder where the bundle has them
};

}  // namespace abi2
}  // namespace vosrt
