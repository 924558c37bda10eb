// vosrt_openvino.hpp - an engine for vosrt.hpp on OpenVINO, compiled into your program against your OpenVINO.
//
//     find_package(OpenVINO REQUIRED)                    # the PyPI package `openvino` brings it, in openvino/cmake
//     target_link_libraries(app PRIVATE vosrt::vosrt openvino::runtime)
//
//     auto bundle = vosrt::Bundle::open("bundle").value();
//     auto model = vosrt::Model::create(bundle, vosrt::OpenVino::open(bundle).value()).value();
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <openvino/openvino.hpp>
#include <string>
#include <thread>
#include <utility>

#include "vosrt.hpp"

namespace vosrt {
inline namespace abi1 {

struct OpenVinoOptions {
    std::string device = "CPU";
    bool bf16 = false;  // arithmetic in bf16, else in fp32
    int threads = 0;    // 0 = one per processor
};

// Shapes are static per compiled graph; those of the last frame sizes are kept. Streams of one size take turns.
class OpenVino : public Engine {
   public:
    static Expected<std::unique_ptr<Engine>> open(const Bundle &bundle, const OpenVinoOptions &options = {}) {
        auto path = bundle.graph_path("encoder");
        if (!path) return path.error();
        const vosrt_bundle_info info = bundle.info();
        try {
            return std::unique_ptr<Engine>(new OpenVino(path.value(), info.input_name, info.output_name, options));
        } catch (const std::exception &error) {
            return Error{VOSRT_ENGINE_FAILED, std::string("OpenVINO cannot load ") + path.value() + ": " + error.what()};
        }
    }

    std::string name() const override { return "openvino " + options_.device + (options_.bf16 ? " bf16" : " fp32"); }

    std::string encode(const vosrt_encode_task &task) override {
        const auto extent = [](int32_t n) { return static_cast<size_t>(n); };
        const ov::Shape in{1, extent(task.height), extent(task.width), 3};
        const ov::Shape out{1, extent(task.grid_height), extent(task.grid_width), extent(task.channels)};
        const std::shared_ptr<Session> session = session_for(in);
        const std::lock_guard<std::mutex> lock(session->mutex);
        ov::InferRequest &request = session->request;
        // Both tensors are views: OpenVINO reads the frame and writes the embedding where they lie.
        request.set_tensor(input_, ov::Tensor(ov::element::u8, in, const_cast<uint8_t *>(task.bgr)));
        request.set_tensor(output_, ov::Tensor(ov::element::f32, out, task.embedding));
        request.infer();
        return "";
    }

   private:
    struct Session {
        ov::Shape shape;
        ov::InferRequest request;
        std::mutex mutex;
    };
    static constexpr size_t kSessions = 2;

    OpenVino(const std::string &path, std::string input, std::string output, OpenVinoOptions options)
        : input_(std::move(input)), output_(std::move(output)), options_(std::move(options)), graph_(core().read_model(path)) {}

    // The one core of this process. A core gives the thread that makes it a stack for signals and takes it back when it ends;
    // where several overlap, the thread is left with a stack that is unmapped, and the next signal kills the process.
    static ov::Core &core() {
        static ov::Core *const only = new ov::Core;
        return *only;
    }

    std::shared_ptr<Session> session_for(const ov::Shape &shape) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto at = sessions_.begin(); at != sessions_.end(); ++at)
            if ((*at)->shape == shape) {
                sessions_.splice(sessions_.begin(), sessions_, at);
                return sessions_.front();
            }
        auto session = std::make_shared<Session>();
        session->shape = shape;
        const std::shared_ptr<ov::Model> graph = graph_->clone();
        graph->reshape({{input_, ov::PartialShape(shape)}});
        ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                            ov::hint::inference_precision(options_.bf16 ? ov::element::bf16 : ov::element::f32)};
        const int threads = options_.threads > 0 ? options_.threads : static_cast<int>(std::thread::hardware_concurrency());
        if (threads > 0) settings.insert(ov::inference_num_threads(threads));  // 0: the system does not tell
        session->request = core().compile_model(graph, options_.device, settings).create_infer_request();
        sessions_.push_front(session);
        if (sessions_.size() > kSessions) sessions_.pop_back();
        return session;
    }

    const std::string input_, output_;
    const OpenVinoOptions options_;
    std::shared_ptr<ov::Model> graph_;
    std::mutex mutex_;
    std::list<std::shared_ptr<Session>> sessions_;  // most recent first
};

}  // namespace abi1
}  // namespace vosrt
