// vosrt_openvino.hpp - an engine for vosrt.hpp on OpenVINO, compiled into your program against your OpenVINO.
//
//     find_package(OpenVINO REQUIRED)                    # the PyPI package `openvino` brings it, in openvino/cmake
//     target_link_libraries(app PRIVATE vosrt::vosrt openvino::runtime)
//
//     auto bundle = vosrt::Bundle::open("bundle").value();
//     auto model = vosrt::Model::create(bundle, vosrt::OpenVino::open(bundle).value()).value();
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <openvino/openvino.hpp>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "vosrt_networks.hpp"

namespace vosrt {
inline namespace abi2 {

struct OpenVinoOptions {
    std::string device = "CPU";
    // "fp32", "bf16", "int8" (of a bundle that carries it), or "auto": int8 where the bundle carries it and the processor has
    // 8-bit dot products; what is not quantised in bf16 where the processor has that natively.
    std::string precision = "auto";
    int threads = 0;  // 0 = one per processor
};

// Shapes are static per compiled graph; those of the last sizes are kept, per network. Streams of one size take turns.
class OpenVino : public Networks<ov::Tensor> {
   public:
    static Expected<std::unique_ptr<Engine>> open(const Bundle &bundle, const OpenVinoOptions &options = {}) {
        const vosrt_bundle_info info = bundle.info();
        bool known = false;
        for (const char *each : {"auto", "fp32", "bf16", "int8"}) known = known || options.precision == each;
        if (!known) return Error{VOSRT_INVALID_ARGUMENT, "precision is '" + options.precision + "'; expected auto, fp32, bf16 or int8"};
        auto encoder = bundle.encoder_role(options.precision);
        if (!encoder) return encoder.error();
        std::unique_ptr<OpenVino> engine(new OpenVino(info, options, encoder.value() == "encoder_int8"));
        const Status loaded = engine->load_graphs(bundle, encoder.value(), "OpenVINO", [&](std::string_view content) -> std::string {
            try {
                engine->networks_.push_back(std::make_unique<Network>(std::string(content), engine->options_, engine->bf16_));
            } catch (const std::exception &error) {
                return error.what();
            }
            return "";
        });
        if (!loaded) return loaded.error();
        return std::unique_ptr<Engine>(std::move(engine));
    }

    std::string name() const override { return "openvino " + options_.device + (int8_ ? " int8" : bf16_ ? " bf16"
                                                                                                        : " fp32"); }
    bool has_threads() const override { return options_.threads != 1; }

   private:
    using Tensors = Maps;

    std::string run(const Call &call) override {
        Tensors inputs;
        for (const NetworkArray &each : call.inputs) inputs.emplace(each.name, view(each));
        for (const auto &[name, map] : call.maps) inputs.emplace(name, *map);
        networks_[call.network]->run(inputs, call.output.name, view(call.output), [&](ov::InferRequest &request) {
            if (call.keep == nullptr) return;
            // The request's own tensors are overwritten with the next frame, which another stream may have.
            for (const auto &port : request.get_compiled_model().outputs()) {
                // A tensor behind an Identity has several names, which come in any order.
                const std::unordered_set<std::string> names = port.get_names();
                if (names.count(call.output.name) != 0) continue;
                const ov::Tensor map = request.get_tensor(port);
                const ov::Tensor copy(map.get_element_type(), map.get_shape());
                map.copy_to(copy);
                for (const std::string &name : names) call.keep->insert_or_assign(name, copy);
            }
        });
        return "";
    }

    // OpenVINO reads and writes the stream's arrays where they lie.
    static ov::Tensor view(const NetworkArray &array) {
        return ov::Tensor(array.is_u8 ? ov::element::u8 : ov::element::f32, ov::Shape(array.shape.begin(), array.shape.end()), array.data);
    }

    // A graph, compiled for the sizes that it was asked for last.
    class Network {
       public:
        Network(const std::string &content, const OpenVinoOptions &options, bool bf16)
            : options_(options), bf16_(bf16), graph_(core().read_model(content, ov::Tensor())) {}

        // `use` has the request to itself when it is done.
        template <class Use>
        void run(const Tensors &inputs, const std::string &name, const ov::Tensor &output, const Use &use) {
            const std::shared_ptr<Session> session = session_for(inputs);
            const std::lock_guard<std::mutex> lock(session->mutex);
            ov::InferRequest &request = session->request;
            for (const auto &[input, tensor] : inputs) request.set_tensor(input, tensor);
            request.set_tensor(name, output);
            request.infer();
            use(request);
        }

       private:
        using Shapes = std::map<std::string, ov::PartialShape>;
        struct Session {
            Shapes shapes;
            ov::InferRequest request;
            std::mutex mutex;
        };
        static constexpr size_t kSessions = 2;

        std::shared_ptr<Session> session_for(const Tensors &inputs) {
            Shapes shapes;
            for (const auto &[input, tensor] : inputs) shapes[input] = tensor.get_shape();
            const std::lock_guard<std::mutex> lock(mutex_);
            for (auto at = sessions_.begin(); at != sessions_.end(); ++at)
                if ((*at)->shapes == shapes) {
                    sessions_.splice(sessions_.begin(), sessions_, at);
                    return sessions_.front();
                }
            auto session = std::make_shared<Session>();
            session->shapes = shapes;
            const std::shared_ptr<ov::Model> graph = graph_->clone();
            graph->reshape(shapes);
            ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                                ov::hint::inference_precision(bf16_ ? ov::element::bf16 : ov::element::f32)};
            const int threads = options_.threads > 0 ? options_.threads : static_cast<int>(std::thread::hardware_concurrency());
            if (threads > 0) settings.insert(ov::inference_num_threads(threads));  // 0: the system does not tell
            session->request = core().compile_model(graph, options_.device, settings).create_infer_request();
            sessions_.push_front(session);
            if (sessions_.size() > kSessions) sessions_.pop_back();
            return session;
        }

        const OpenVinoOptions options_;
        const bool bf16_;
        const std::shared_ptr<ov::Model> graph_;
        std::mutex mutex_;
        std::list<std::shared_ptr<Session>> sessions_;  // most recent first
    };

    OpenVino(const vosrt_bundle_info &info, const OpenVinoOptions &options, bool int8)
        : Networks(info),
          options_(options),
          int8_(int8),
          bf16_(options.precision == "bf16" || (options.precision != "fp32" && has_bf16())) {}

    static bool has_bf16() { return vosrt_isa_available(VOSRT_ISA_AVX512_BF16) != 0 || vosrt_isa_available(VOSRT_ISA_AMX) != 0; }

    // The one core of this process. A core gives the thread that makes it a stack for signals and takes it back when it ends;
    // where several overlap, the thread is left with a stack that is unmapped, and the next signal kills the process.
    static ov::Core &core() {
        static ov::Core *const only = new ov::Core;
        return *only;
    }

    const OpenVinoOptions options_;
    const bool int8_, bf16_;                          // whether the encoder is quantised, and what all else is computed in
    std::vector<std::unique_ptr<Network>> networks_;  // encoder, and mask encoder and decoder where the bundle has them
};

}  // namespace abi2
}  // namespace vosrt
