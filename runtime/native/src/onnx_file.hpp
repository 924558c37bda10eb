// Looking into an ONNX file before any engine does, as vosrt/onnx_file.py has it: plain operators, weights inside the file.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace vosrt {

constexpr int64_t kMaxGraphBytes = (int64_t{1} << 31) - 1;  // what protobuf can hold
constexpr int64_t kOnnxFloat = 1, kOnnxUint8 = 2;           // onnx.TensorProto.DataType

struct TensorType {
    int64_t element = 0;
    std::vector<int64_t> shape;  // -1: dynamic
};

struct GraphInterface {
    std::map<std::string, TensorType> inputs, outputs;
};

// `where` names the file in messages. Throws Error(VOSRT_INVALID_BUNDLE).
GraphInterface read_interface(std::span<const uint8_t> file, const std::string &where);

}  // namespace vosrt
