// Reads an ONNX file before any engine does: what it takes and gives, and nothing in it that reaches outside.
//
// A matching hash says that a file is the one its maker wrote, not that the maker meant well. Engines do what a graph says: they
// open the files that external data and compiled contexts name, run operators that plugins bring, and some of their kernels trust
// indices and sizes. So graphs of a bundle are plain and self-contained, and made of the operators of onnx_rules.cpp alone.
//
// The reader knows as much of protobuf as that takes. It is bounded by the file: it visits every field at most once, and copies
// nothing but names and short lists of integers.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace vosrt {

// onnx.TensorProto.DataType
constexpr int64_t kOnnxFloat = 1, kOnnxUint8 = 2, kOnnxInt8 = 3, kOnnxInt32 = 6, kOnnxInt64 = 7, kOnnxFloat16 = 10,
                  kOnnxFloat8 = 17;

struct TensorType {
    int64_t element = 0;
    std::vector<int64_t> shape;  // -1: dynamic
};

struct GraphInterface {
    std::map<std::string, TensorType> inputs, outputs;
    std::vector<std::string> output_names;  // in the order of the file
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

// Of a graph that check_graph allows.
GraphInterface read_interface(std::span<const uint8_t> file, const std::string &where);

// Outputs in the order of the file, whether or not check_graph allows the graph.
std::vector<std::string> read_outputs(std::span<const uint8_t> file, const std::string &where);

// An encoder takes `input`, u8 [n, height, width, 3], and gives `output`, f32 [n, h, w, channels].
void check_encoder(const GraphInterface &interface, const std::string &input, const std::string &output, int64_t channels,
                   const std::string &where);

}  // namespace vosrt
