// The C boundary of bundles.
#include <algorithm>
#include <string>

#include "bundle.hpp"
#include "c_api.hpp"
#include "onnx_file.hpp"

namespace vosrt {

template <>
struct Behind<vosrt_bundle> : Object {  // without a lock: it never changes
    static constexpr char kKind[] = "bundle";

    explicit Behind(Bundle bundle_) : Object(kKind), bundle(std::move(bundle_)) {}

    const Bundle bundle;
};

}  // namespace vosrt

using vosrt::Call;
using vosrt::guarded;
using vosrt::require;

namespace {

const vosrt::GraphFile &graph_of(const vosrt::Bundle &bundle, const char *graph) {
    require(graph, "graph");
    std::string have;
    for (const vosrt::GraphFile &file : bundle.graphs) {
        if (file.name == graph) return file;
        have += (have.empty() ? "" : ", ") + file.name;
    }
    throw vosrt::Error(VOSRT_INVALID_BUNDLE, "bundle " + bundle.path + " has no graph '" + graph + "'; it has: " + have);
}

}  // namespace

extern "C" {

vosrt_status vosrt_bundle_open(const char *path, vosrt_bundle **bundle) {
    return guarded(__func__, [&] {
        require(path, "path", bundle, "bundle");
        *bundle = nullptr;
        *bundle = vosrt::make_handle<vosrt_bundle>(std::make_shared<vosrt::Behind<vosrt_bundle>>(vosrt::open_bundle(path)));
    });
}

void vosrt_bundle_close(vosrt_bundle *bundle) { vosrt::destroy_handle(bundle); }

vosrt_status vosrt_bundle_get_info(const vosrt_bundle *bundle, vosrt_bundle_info *info) {
    return guarded(__func__, bundle, [&](const auto &at) {
        const vosrt::Bundle &from = at->bundle;
        const vosrt_bundle_info out{sizeof out, from.trained ? 1 : 0, from.name.c_str(),
                                    from.summary.c_str(), from.feature.c_str(), from.input_name.c_str(),
                                    from.output_name.c_str(), from.path.c_str(),
                                    from.context_name.empty() ? nullptr : from.context_name.c_str()};
        vosrt::write_struct(out, info, "info");
    });
}

vosrt_status vosrt_bundle_manifest(const vosrt_bundle *bundle, const char **text, size_t *size) {
    return guarded(__func__, bundle, [&](const auto &at) {
        require(text, "text", size, "size");
        *text = at->bundle.manifest.data();
        *size = at->bundle.manifest.size();
    });
}

vosrt_status vosrt_bundle_graph_path(const vosrt_bundle *bundle, const char *graph, const char **path) {
    return guarded(__func__, bundle, [&](const auto &at) {
        require(path, "path");
        *path = graph_of(at->bundle, graph).path.c_str();
    });
}

vosrt_status vosrt_bundle_graph_content(const vosrt_bundle *bundle, const char *graph, const uint8_t **bytes, size_t *size) {
    return guarded(__func__, bundle, [&](const auto &at) {
        require(bytes, "bytes", size, "size");
        const vosrt::GraphFile &file = graph_of(at->bundle, graph);
        *bytes = file.content.data();
        *size = file.content.size();
    });
}

vosrt_status vosrt_bundle_model_options(const vosrt_bundle *bundle, vosrt_model_options *options) {
    return guarded(__func__, bundle, [&](const auto &at) {
        const vosrt::Bundle &from = at->bundle;
        vosrt_model_options out{};
        out.channels = from.channels;
        out.stride = from.stride;
        out.min_side = from.min_side;
        out.max_side = from.max_side;
        out.size = from.size;
        out.enlarge_percent = from.enlarge_percent;
        out.memory = &from.memory;
        out.name = from.name.c_str();
        out.value_channels = from.value_channels;
        out.rounds = from.rounds;
        out.residual = from.residual ? 1 : 0;
        out.feedback = from.feedback ? 1 : 0;
        std::copy(from.encoder_sha256.begin(), from.encoder_sha256.end(), out.graph_sha256);
        vosrt::write_struct(out, options, "options");
    });
}

vosrt_status vosrt_manifest_check(const char *text, size_t size, const char *where) {
    return guarded(__func__, [&] {
        require(text, "text", where, "where");
        vosrt::parse_manifest({text, size}, where);
    });
}

vosrt_status vosrt_graph_check(const uint8_t *graph, size_t size, const char *where, const char *input, const char *output,
                               int32_t channels) {
    return guarded(__func__, [&] {
        require(graph, "graph", where, "where");
        if (input != nullptr) require(output, "output");
        const vosrt::GraphInterface found = vosrt::read_interface({graph, size}, where);
        if (input != nullptr) vosrt::check_encoder(found, input, output, channels, where);
    });
}

vosrt_status vosrt_graph_outputs(const uint8_t *graph, size_t graph_size, const char *where, uint8_t *buffer, size_t capacity,
                                 size_t *size) {
    return guarded(__func__, [&] {
        require(graph, "graph", where, "where", size, "size");
        std::string names;
        for (const std::string &name : vosrt::read_outputs({graph, graph_size}, where)) names += name + '\0';
        *size = names.size();
        vosrt::check_capacity(buffer, capacity, names.size());
        std::copy(names.begin(), names.end(), buffer);
    });
}

vosrt_status vosrt_graph_append(const uint8_t *graph, size_t graph_size, const uint8_t *added, size_t added_size,
                                const char *embedding, const char *where, uint8_t *buffer, size_t capacity, size_t *size) {
    return guarded(__func__, [&] {
        for (const auto &[pointer, name] : {std::pair<const void *, const char *>{graph, "graph"}, {added, "added"}, {embedding, "embedding"}, {where, "where"}, {size, "size"}})
            require(pointer, name);
        *size = graph_size + added_size;
        vosrt::check_capacity(buffer, capacity, *size);
        std::vector<uint8_t> joined(graph, graph + graph_size);
        vosrt::append_graph(joined, {added, added_size}, embedding, where);
        std::copy(joined.begin(), joined.end(), buffer);
    });
}

}  // extern "C"
