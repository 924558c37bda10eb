// The C boundary of bundles.
#include <algorithm>
#include <string>

#include "bundle.hpp"
#include "c_api.hpp"

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
        require(path, "path");
        require(bundle, "bundle");
        *bundle = nullptr;
        *bundle = vosrt::make_handle<vosrt_bundle>(std::make_shared<vosrt::Behind<vosrt_bundle>>(vosrt::open_bundle(path)));
    });
}

void vosrt_bundle_close(vosrt_bundle *bundle) { vosrt::destroy_handle(bundle); }

vosrt_status vosrt_bundle_get_info(const vosrt_bundle *bundle, vosrt_bundle_info *info) {
    return guarded(__func__, [&] {
        const Call at(bundle);
        const vosrt::Bundle &from = at->bundle;
        const vosrt_bundle_info out{sizeof out, from.trained ? 1 : 0, from.name.c_str(),
                                    from.summary.c_str(), from.feature.c_str(), from.input_name.c_str(),
                                    from.output_name.c_str(), from.path.c_str(),
                                    from.context_name.empty() ? nullptr : from.context_name.c_str()};
        vosrt::write_struct(out, info, "info");
    });
}

vosrt_status vosrt_bundle_graph_path(const vosrt_bundle *bundle, const char *graph, const char **path) {
    return guarded(__func__, [&] {
        const Call at(bundle);
        require(path, "path");
        *path = graph_of(at->bundle, graph).path.c_str();
    });
}

vosrt_status vosrt_bundle_graph_content(const vosrt_bundle *bundle, const char *graph, const uint8_t **bytes, size_t *size) {
    return guarded(__func__, [&] {
        const Call at(bundle);
        require(bytes, "bytes");
        require(size, "size");
        const vosrt::GraphFile &file = graph_of(at->bundle, graph);
        *bytes = file.content.data();
        *size = file.content.size();
    });
}

vosrt_status vosrt_bundle_model_options(const vosrt_bundle *bundle, vosrt_model_options *options) {
    return guarded(__func__, [&] {
        const Call at(bundle);
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

}  // extern "C"
