// Whatever the bytes, the readers of a bundle's manifest and graphs return or refuse.
#include <string>
#include <string_view>

#include "bundle.hpp"
#include "error.hpp"
#include "fuzz.hpp"
#include "onnx_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try {
        vosrt::parse_manifest({reinterpret_cast<const char *>(data), size}, "manifest.json");
    } catch (const vosrt::Error &) {
    }
    try {
        vosrt::read_interface({data, size}, "encoder.onnx");
    } catch (const vosrt::Error &) {
    }
    return 0;
}

std::vector<Input> fuzz_seeds() {
    const std::string manifest =
        R"({"schema": 1, "family": "correspondence", "name": "na\u00efve \ud83d\ude00", "trained": false, "summary": "s",)"
        R"("encoder": {"channels": 4, "feature": "res3", "stride": 8, "input_name": "frames", "output_name": "embedding",)"
        R"("min_side": 16, "max_side": 4096}, "inference": {"context": 3, "radius": 2.5e0, "size": null, "window": "circle"},)"
        R"("graphs": {"encoder": {"file": "encoder.onnx", "bytes": 9, "precision": "fp16", "sha256": ")" +
        std::string(64, 'a') + R"("}}, "verification": {"figures": [1, -2.5, true]}, "provenance": {}})";
    vosrt::parse_manifest(manifest, "seed");  // a seed that is refused would lead nowhere
    // A graph with one node (a Relu of domain "ai.onnx"), one weight of two floats, an input and an output.
    const std::string input =
        std::string("\x0a\x01x") + std::string("\x12\x0e\x0a\x0c\x08\x01\x12\x08\x0a\x02\x08\x02\x0a\x02\x08\x03", 16);
    std::string graph = std::string(
                            "\x0a\x15\x0a\x01x\x12\x01y\x22\x04Relu\x3a\x07"
                            "ai.onnx") +
                        std::string("\x2a\x0e\x08\x02\x10\x01\x4a\x08", 8) + std::string(8, '\0');
    for (const char tag : {'\x5a', '\x62'}) graph += std::string(1, tag) + static_cast<char>(input.size()) + input;
    const std::string model = std::string("\x08\x08\x3a") + static_cast<char>(graph.size()) + graph;
    vosrt::read_interface({reinterpret_cast<const uint8_t *>(model.data()), model.size()}, "seed");
    return {{manifest.begin(), manifest.end()}, {model.begin(), model.end()}};
}
