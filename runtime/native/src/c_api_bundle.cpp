// The C boundary of bundles.
#include <algorithm>
#include <string>

#include "bundle.hpp"
#include "c_api.hpp"

struct vosrt_bundle {
    vosrt::Bundle bundle;
};

using vosrt::guarded;
using vosrt::require;

extern "C" {

vosrt_status vosrt_bundle_open(const char *path, vosrt_bundle **bundle) {
    return guarded([&] {
        require(path, "path");
        require(bundle, "bundle");
        *bundle = nullptr;
        *bundle = new vosrt_bundle{vosrt::open_bundle(path)};
    });
}

void vosrt_bundle_close(vosrt_bundle *bundle) { delete bundle; }

vosrt_status vosrt_bundle_get_info(const vosrt_bundle *bundle, vosrt_bundle_info *info) {
    return guarded([&] {
        require(bundle, "bundle");
        const vosrt::Bundle &from = bundle->bundle;
        const vosrt_bundle_info out{sizeof out,           from.trained ? 1 : 0,    from.name.c_str(),
                                    from.summary.c_str(), from.feature.c_str(),    from.input_name.c_str(),
                                    from.output_name.c_str(), from.path.c_str()};
        vosrt::write_struct(out, info, "info");
    });
}

vosrt_status vosrt_bundle_graph_path(const vosrt_bundle *bundle, const char *graph, const char **path) {
    return guarded([&] {
        require(bundle, "bundle");
        require(graph, "graph");
        require(path, "path");
        std::string have;
        for (const vosrt::GraphFile &file : bundle->bundle.graphs) {
            if (file.name == graph) {
                *path = file.path.c_str();
                return;
            }
            have += (have.empty() ? "" : ", ") + file.name;
        }
        throw vosrt::Error(VOSRT_INVALID_BUNDLE,
                           "bundle " + bundle->bundle.path + " has no graph '" + graph + "'; it has: " + have);
    });
}

vosrt_status vosrt_bundle_model_options(const vosrt_bundle *bundle, vosrt_model_options *options) {
    return guarded([&] {
        require(bundle, "bundle");
        const vosrt::Bundle &from = bundle->bundle;
        vosrt_model_options out{};
        out.channels = from.channels;
        out.stride = from.stride;
        out.min_side = from.min_side;
        out.max_side = from.max_side;
        out.size = from.size;
        out.memory = &from.memory;
        out.name = from.name.c_str();
        std::copy(from.encoder_sha256.begin(), from.encoder_sha256.end(), out.graph_sha256);
        vosrt::write_struct(out, options, "options");
    });
}

}  // extern "C"
