// For tests alone: the part of TensorRT's interface that vosrt_tensorrt.hpp uses, written down from its documentation, since no
// package that tests can get holds the real header. Behind it run three networks (networks.hpp), which a plan names: "f32 plan", an
// encoder of 4 channels or of as many as stand behind it; "f32 mask" and "f32 draw", mask encoder and decoder of as many value channels.
// They take frames of 16 to 64 pixels a side in profile 0, of 65 to 128 in profile 1, and up to kMostObjects.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "cuda_runtime_api.h"
#include "networks.hpp"

namespace nvinfer1 {

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};
enum class DataType : int32_t {
    kFLOAT = 0,
    kHALF = 1,
    kUINT8 = 5
};
enum class TensorIOMode : int32_t {
    kNONE = 0,
    kINPUT = 1,
    kOUTPUT = 2
};
enum class OptProfileSelector : int32_t {
    kMIN = 0,
    kOPT = 1,
    kMAX = 2
};

class ILogger {
   public:
    enum class Severity : int32_t {
        kINTERNAL_ERROR = 0,
        kERROR = 1,
        kWARNING = 2,
        kINFO = 3,
        kVERBOSE = 4
    };
    virtual void log(Severity severity, const char *text) noexcept = 0;
    virtual ~ILogger() = default;
};

inline constexpr int64_t kMostObjects = 3;

class IExecutionContext {
   public:
    static inline int made = 0;  // for tests to count
    IExecutionContext(ILogger &log, std::string kind, int64_t channels) : log_(log), kind_(std::move(kind)), channels_(channels) { ++made; }
    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept {
        profile_ = profile;
        return true;
    }
    bool setInputShape(const char *name, const Dims &shape) noexcept {
        if (std::string(name) == "frames" && (shape.d[1] > 64 || shape.d[2] > 64) != (profile_ == 1)) return false;
        shapes_[name] = shape;
        return true;
    }
    Dims getTensorShape(const char *name) const noexcept {
        const std::string tensor = name;
        if (const auto known = shapes_.find(tensor); known != shapes_.end()) return known->second;
        if (tensor == "logits") return {3, {shapes_.at("readout").d[0], shapes_.at("res2").d[2], shapes_.at("res2").d[3]}};
        const Dims &frames = shapes_.at("frames");
        const int64_t h = (frames.d[1] + 7) / 8, w = (frames.d[2] + 7) / 8;
        if (tensor == "values") return {4, {shapes_.at("masks").d[0], h, w, channels_}};
        if (tensor == "res3") return {4, {1, fake::kMaps, h, w}};
        if (tensor == "res2") return {4, {1, fake::kMaps, (frames.d[1] + 3) / 4, (frames.d[2] + 3) / 4}};
        return {4, {1, h, w, channels_}};
    }
    bool setTensorAddress(const char *name, void *memory) noexcept {
        addresses_[name] = memory;
        return memory != nullptr;
    }
    bool enqueueV3(cudaStream_t stream) noexcept {
        if (cudaStreamOfWork != nullptr) *cudaStreamOfWork = stream;
        const auto at = [&](const char *name) { return static_cast<float *>(addresses_.at(name)); };
        if (kind_ == "f32 draw") {
            const Dims &values = shapes_.at("readout"), &fine = shapes_.at("res2");
            fake::decode({values.d[0], values.d[1], values.d[2], values.d[3]}, fine.d[2], fine.d[3], at("readout"), at("values"), at("res3"), at("res2"), at("logits"));
            return true;
        }
        const auto *bgr = static_cast<const uint8_t *>(addresses_.at("frames"));
        const int64_t height = shapes_.at("frames").d[1], width = shapes_.at("frames").d[2];
        if (bgr[0] == 255) {  // how a test has it fail
            log_.log(ILogger::Severity::kERROR, "the first pixel is too blue");
            return false;
        }
        if (kind_ == "f32 mask") {
            fake::encode_masks({shapes_.at("masks").d[0], height, width, channels_}, bgr, at("masks"), at("context"), at("values"));
            return true;
        }
        const bool has_maps = addresses_.count("res3") != 0;
        fake::encode(height, width, channels_, bgr, at("embedding"), has_maps ? at("res3") : nullptr, has_maps ? at("res2") : nullptr);
        return true;
    }

   private:
    ILogger &log_;
    const std::string kind_;
    int64_t channels_;
    int32_t profile_ = -1;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, void *> addresses_;
};

class ICudaEngine {
   public:
    ICudaEngine(ILogger &log, std::string kind, int64_t channels) : log_(log), kind_(std::move(kind)), channels_(channels) {}
    IExecutionContext *createExecutionContext() noexcept { return new IExecutionContext(log_, kind_, channels_); }
    TensorIOMode getTensorIOMode(const char *name) const noexcept {
        const std::string tensor = std::string(" ") + name + " ";
        const auto among = [&](const char *names) { return std::string(names).find(tensor) != std::string::npos; };
        const bool draws = kind_ == "f32 draw", masks = kind_ == "f32 mask";
        if (among(draws ? " readout values res3 res2 " : masks ? " frames masks context "
                                                               : " frames ")) return TensorIOMode::kINPUT;
        return among(draws ? " logits " : masks ? " values "
                                                : " embedding res3 res2 ")
                   ? TensorIOMode::kOUTPUT
                   : TensorIOMode::kNONE;
    }
    DataType getTensorDataType(const char *name) const noexcept {
        if (std::string(name) == "frames") return DataType::kUINT8;
        return kind_ == "f16 plan" ? DataType::kHALF : DataType::kFLOAT;
    }
    int32_t getNbOptimizationProfiles() const noexcept { return 2; }
    Dims getProfileShape(const char *name, int32_t profile, OptProfileSelector which) const noexcept {
        const bool most = which == OptProfileSelector::kMAX;
        const int64_t pixels[2][2] = {{16, 64}, {65, 128}}, n = pixels[profile][most], cells = (n + 7) / 8, quarter = (n + 3) / 4;
        const int64_t objects = most ? kMostObjects : 1;
        const std::string tensor = name;
        if (tensor == "frames") return {4, {1, n, n, 3}};
        if (tensor == "masks") return {3, {objects, n, n}};
        if (tensor == "res2") return {4, {1, fake::kMaps, quarter, quarter}};
        if (tensor == "context" || tensor == "res3") return {4, {1, fake::kMaps, cells, cells}};
        return {4, {objects, cells, cells, channels_}};
    }

   private:
    ILogger &log_;
    const std::string kind_;
    int64_t channels_;
};

class IRuntime {
   public:
    explicit IRuntime(ILogger &log) : log_(log) {}
    ICudaEngine *deserializeCudaEngine(const void *plan, size_t size) noexcept {
        const std::string text(static_cast<const char *>(plan), size);
        const std::string kind = text.substr(0, 8);
        if (kind == "f32 plan" || kind == "f16 plan" || kind == "f32 mask" || kind == "f32 draw")
            return new ICudaEngine(log_, kind, text == kind ? 4 : std::stoi(text.substr(8)));
        log_.log(ILogger::Severity::kERROR, "not a plan");
        return nullptr;
    }

   private:
    ILogger &log_;
};
inline IRuntime *createInferRuntime(ILogger &log) noexcept { return new IRuntime(log); }

}  // namespace nvinfer1
