// Looking into an ONNX file before any engine does, as vosrt/onnx_file.py has it: weights inside the file, and operators of
// the table that onnx_rules.cpp checks.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace vosrt {

constexpr int64_t kMaxGraphBytes = (int64_t{1} << 31) - 1;  // what protobuf can hold
// onnx.TensorProto.DataType
constexpr int64_t kOnnxFloat = 1, kOnnxUint8 = 2, kOnnxInt8 = 3, kOnnxInt32 = 6, kOnnxInt64 = 7, kOnnxFloat16 = 10,
                  kOnnxFloat8 = 17;

struct TensorType {
    int64_t element = 0;
    std::vector<int64_t> shape;  // -1: dynamic
};

struct GraphInterface {
    std::map<std::string, TensorType> inputs, outputs;
};

struct OnnxTensor {
    int64_t element = 0;
    std::vector<int64_t> shape;
    std::optional<std::vector<int64_t>> values;  // of short int64 tensors
};

struct OnnxAttribute {
    enum class Kind {
        number = 1,
        integer = 2,
        text = 3,
        tensor = 4,
        integers = 7
    };  // AttributeProto.AttributeType
    Kind kind = Kind::integer;
    float number = 0;
    std::string text;
    std::vector<int64_t> integers;  // one for `integer`
    OnnxTensor tensor;
};

struct OnnxNode {
    std::string name, type;
    std::vector<std::string> inputs, outputs;  // an empty input was left out
    std::map<std::string, OnnxAttribute> attributes;
};

struct OnnxGraph {
    GraphInterface interface;
    std::vector<OnnxNode> nodes;
    std::map<std::string, OnnxTensor> constants;
};

// Why a well-formed graph is not run.
struct UnsafeGraph {
    std::string what;
};

// A name from a file as it may be printed.
std::string shown_name(const std::string &text);

// onnx_rules.cpp; throws UnsafeGraph.
void check_graph(const OnnxGraph &graph);

// The functions below name the file `where` in messages and throw Error(VOSRT_INVALID_BUNDLE).

// Appends `added`, which protobuf merges with the file before it. If `added` declares the output `embedding`, the file's own
// outputs become tensors inside the graph (value_info).
void append_graph(std::vector<uint8_t> &file, std::span<const uint8_t> added, const std::string &embedding, const std::string &where);

GraphInterface read_interface(std::span<const uint8_t> file, const std::string &where);

}  // namespace vosrt
