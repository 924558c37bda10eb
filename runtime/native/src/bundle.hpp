// Bundles: what is in their manifests, and their graphs.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "memory.hpp"
#include "vosrt.h"

namespace vosrt {

struct GraphPart {
    std::string file, sha256;
    int64_t bytes = 0;
};

struct GraphFile : GraphPart {
    std::string name;
    std::string precision;          // of the stored weights: fp32, fp16, int8 or fp8
    std::string bundle;             // whose `file` it is, by its folder beside this one's; empty: this one's
    std::optional<GraphPart> adds;  // further nodes and outputs, in a file of this bundle
    std::string path;               // of `file`, UTF-8
    std::vector<uint8_t> content;   // of both, as it was hashed and checked
};

struct Bundle {
    std::string path, manifest, name, summary, feature, input_name, output_name;
    bool trained = false;
    int32_t channels = 0, stride = 0, min_side = 0, max_side = 0;
    int32_t size = default_model_options().size;  // where the manifest has none
    int32_t enlarge_percent = default_model_options().enlarge_percent;
    std::string context_name;  // output of the encoder that the mask encoder takes; "" without mask networks
    int32_t value_channels = 0, rounds = 0;
    bool residual = false, feedback = true;
    vosrt_memory_options memory{};
    std::vector<GraphFile> graphs;
    std::array<uint8_t, 32> encoder_sha256{};
};

// The manifest's text alone; `where` names it in messages. Throws Error(VOSRT_INVALID_BUNDLE).
Bundle parse_manifest(std::string_view text, const std::string &where);

// Reads a directory and compares sizes and hashes. Throws Error(VOSRT_INVALID_BUNDLE).
Bundle open_bundle(const std::string &path);

}  // namespace vosrt
