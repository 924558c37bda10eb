// Bundles as vosrt/bundle.py defines them: the same fields, the same refusals.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "vosrt.h"

namespace vosrt {

struct GraphFile {
    std::string name, file, sha256, precision;
    int64_t bytes;
    std::string path;  // UTF-8
};

struct Bundle {
    std::string path, name, summary, feature, input_name, output_name;
    bool trained = false;
    int32_t channels = 0, stride = 0, min_side = 0, max_side = 0;
    int32_t size = 0;  // 0: none
    vosrt_memory_options memory{};
    std::vector<GraphFile> graphs;
    std::array<uint8_t, 32> encoder_sha256{};
};

// The manifest's text alone; `where` names it in messages. Throws Error(VOSRT_INVALID_BUNDLE).
Bundle parse_manifest(std::string_view text, const std::string &where);

// Reads a directory and compares sizes and hashes. Throws Error(VOSRT_INVALID_BUNDLE).
Bundle open_bundle(const std::string &path);

}  // namespace vosrt
