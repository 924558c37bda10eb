// vosrt_networks.hpp - what the engines of vosrt_onnxruntime.hpp, vosrt_openvino.hpp and vosrt_tensorrt.hpp share: which graphs of a
// bundle they load, and what a stream's tasks are for these graphs' inputs and outputs. An engine of yours may derive from it as they do.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vosrt.hpp"

namespace vosrt {
inline namespace abi2 {

// A dense array of a task, for one input or output of a network.
struct NetworkArray {
    NetworkArray(std::string input, const uint8_t *bytes, std::vector<int64_t> extents)
        : name(std::move(input)), data(const_cast<uint8_t *>(bytes)), shape(std::move(extents)), is_u8(true) {}
    NetworkArray(std::string tensor, const float *values, std::vector<int64_t> extents)
        : name(std::move(tensor)), data(const_cast<float *>(values)), shape(std::move(extents)) {}

    size_t bytes() const {
        size_t total = is_u8 ? 1 : sizeof(float);
        for (const int64_t extent : shape) total *= static_cast<size_t>(extent);
        return total;
    }

    std::string name;
    void *data;  // inputs are only read
    std::vector<int64_t> shape;
    bool is_u8 = false;  // else f32
};

enum NetworkRole : size_t {  // places of a bundle's networks
    kEncoder,
    kMaskEncoder,
    kDecoder
};

// An engine of a bundle's encoder and, where there are some, its mask networks. `Map` is a feature map of a frame, which the encoder
// gives and the mask networks read.
template <class Map>
class Networks : public Engine {
   public:
    bool has_mask_networks() const override { return !context_.empty(); }

    std::string encode(const vosrt_encode_task &task) override {
        return encode_with(task, [this](const Call &call) { return run(call); });
    }

    std::string encode_masks(const vosrt_encode_masks_task &task) override {
        return run({kMaskEncoder,
                    {{"frames", task.bgr, {1, task.height, task.width, 3}}, {"masks", task.masks, {task.objects, task.height, task.width}}},
                    {{"context", map(task.features, context_)}},
                    {"values", task.values, {task.objects, task.grid_height, task.grid_width, task.value_channels}}});
    }

    std::string decode_masks(const vosrt_decode_masks_task &task) override {
        const std::vector<int64_t> values{task.objects, task.grid_height, task.grid_width, task.value_channels};
        return run({kDecoder,
                    {{"readout", task.readout, values}, {"values", task.values, values}},
                    {{"res3", map(task.features, "res3")}, {"res2", map(task.features, "res2")}},
                    {"logits", task.logits, {task.objects, task.logit_height, task.logit_width}}});
    }

    void release(void *features) override { delete static_cast<Maps *>(features); }

   protected:
    using Maps = std::map<std::string, Map>;  // of a frame, by the names of the encoder's outputs

    // One run of a network.
    struct Call {
        NetworkRole network;
        std::vector<NetworkArray> inputs;
        std::vector<std::pair<std::string, const Map *>> maps;  // further inputs
        NetworkArray output;
        Maps *keep = nullptr;  // receives the encoder's maps; nullptr where nobody needs them
    };

    explicit Networks(const vosrt_bundle_info &info, bool mask_networks = true)
        : input_(info.input_name),
          output_(info.output_name),
          context_(info.context_name == nullptr || !mask_networks ? "" : info.context_name) {}

    // "", or why it failed.
    virtual std::string run(const Call &call) = 0;

    template <class Run>
    std::string encode_with(const vosrt_encode_task &task, const Run &run) {
        std::unique_ptr<Maps> maps(task.features == nullptr ? nullptr : new Maps);
        std::string failure = run({kEncoder,
                                   {{input_, task.bgr, {1, task.height, task.width, 3}}},
                                   {},
                                   {output_, task.embedding, {1, task.grid_height, task.grid_width, task.channels}},
                                   maps.get()});
        if (failure.empty() && maps) *task.features = maps.release();
        return failure;
    }

    // Outputs of the encoder that the mask networks read.
    std::set<std::string> map_names() const {
        if (context_.empty()) return {};
        return {"res3", "res2", context_};
    }

    // Calls load(content) for the graph of the encoder, by its role, and for those of the mask networks, in the order of NetworkRole;
    // it gives "", or why `library` cannot load one.
    template <class Load>
    Status load_graphs(const Bundle &bundle, const std::string &encoder, const char *library, const Load &load) {
        std::vector<std::string> roles{encoder};
        if (has_mask_networks()) roles.insert(roles.end(), {"mask_encoder", "decoder"});
        for (const std::string &role : roles) {
            auto content = bundle.graph_content(role);
            if (!content) return content.error();
            if (const std::string failure = load(content.value()); !failure.empty())
                return Error{VOSRT_ENGINE_FAILED,
                             std::string(library) + " cannot load the " + role + " of " + bundle.info().path + ": " + failure};
        }
        return std::monostate{};
    }

    const std::string input_, output_, context_;  // the last one is empty where no mask networks are run

   private:
    static const Map *map(void *features, const std::string &name) { return &static_cast<const Maps *>(features)->at(name); }
};

}  // namespace abi2
}  // namespace vosrt
