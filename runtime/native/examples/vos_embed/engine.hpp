// The engine that was chosen with CMake. `mode` is the last argument of the command, or empty.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#if defined(ON_ONNXRUNTIME)
#include <vosrt_onnxruntime.hpp>

constexpr const char *kModes = "";
inline std::unique_ptr<vosrt::Engine> open_engine(const vosrt::Bundle &bundle, const std::string &mode) {
    if (!mode.empty()) throw std::invalid_argument("ONNX Runtime's CPU provider computes in fp32 and takes no mode: " + mode);
    return vosrt::OnnxRuntime::open(bundle).value();
}
#elif defined(ON_TENSORRT)
#include <vosrt_tensorrt.hpp>

constexpr const char *kModes = " FILE.engine";
inline std::unique_ptr<vosrt::Engine> open_engine(const vosrt::Bundle &bundle, const std::string &mode) {
    if (mode.empty()) throw std::invalid_argument("which engine? vos-export engine BUNDLE writes them to BUNDLE/engines");
    return vosrt::TensorRt::open(bundle, mode).value();
}
#else
#include <vosrt_openvino.hpp>

constexpr const char *kModes = " [bf16]";
inline std::unique_ptr<vosrt::Engine> open_engine(const vosrt::Bundle &bundle, const std::string &mode) {
    if (!mode.empty() && mode != "bf16") throw std::invalid_argument("precision is " + mode + "; expected bf16, or nothing for fp32");
    vosrt::OpenVinoOptions options;
    options.bf16 = mode == "bf16";
    return vosrt::OpenVino::open(bundle, options).value();
}
#endif
