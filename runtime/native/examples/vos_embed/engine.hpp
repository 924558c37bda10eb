// The engine that was chosen with CMake. `mode` is the last argument of the command, or empty.
#pragma once

#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>

#if defined(ON_ONNXRUNTIME)
#include <vosrt_onnxruntime.hpp>

constexpr const char *kModes = " [int8|auto]";
inline std::unique_ptr<vosrt::Engine> open_engine(const vosrt::Bundle &bundle, const std::string &mode) {
    vosrt::OnnxRuntimeOptions options;
    options.precision = mode.empty() ? "fp32" : mode;
    return vosrt::OnnxRuntime::open(bundle, options).value();
}
#elif defined(ON_TENSORRT)
#include <vosrt_tensorrt.hpp>

constexpr const char *kModes = " ENCODER.engine[,MASK_ENCODER.engine,DECODER.engine]";
inline std::unique_ptr<vosrt::Engine> open_engine(const vosrt::Bundle &bundle, const std::string &mode) {
    if (mode.empty())
        throw std::invalid_argument("which engine? vos-export engine BUNDLE writes them to BUNDLE/engines");
    std::istringstream words(mode);
    std::string encoder;
    vosrt::TensorRtOptions options;
    for (std::string *file : {&encoder, &options.mask_encoder, &options.decoder}) std::getline(words, *file, ',');
    return vosrt::TensorRt::open(bundle, encoder, options).value();
}
#else
#include <vosrt_openvino.hpp>

constexpr const char *kModes = " [bf16|int8|auto]";
inline std::unique_ptr<vosrt::Engine> open_engine(const vosrt::Bundle &bundle, const std::string &mode) {
    vosrt::OpenVinoOptions options;
    options.precision = mode.empty() ? "fp32" : mode;
    return vosrt::OpenVino::open(bundle, options).value();
}
#endif
