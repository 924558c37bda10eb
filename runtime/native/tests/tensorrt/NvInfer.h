// For tests alone: the part of TensorRT's interface that vosrt_tensorrt.hpp uses, written down from its documentation, since no
// package that tests can get holds the real header. Behind it runs one network: the mean colour of each 8 x 8 cell,
// in 4 channels, or as many as the plan says behind its kind.
// It takes frames of 16 to 64 pixels a side in profile 0, of 65 to 128 in profile 1.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "cuda_runtime_api.h"

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

class IExecutionContext {
   public:
    static inline int made = 0;  // for tests to count
    IExecutionContext(ILogger &log, int64_t channels) : log_(log), channels_(channels) { ++made; }
    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept {
        profile_ = profile;
        return true;
    }
    bool setInputShape(const char *, const Dims &shape) noexcept {
        if ((shape.d[1] > 64 || shape.d[2] > 64) != (profile_ == 1)) return false;
        shape_ = shape;
        return true;
    }
    Dims getTensorShape(const char *name) const noexcept {
        if (std::strcmp(name, "frames") == 0) return shape_;
        return {4, {1, (shape_.d[1] + 7) / 8, (shape_.d[2] + 7) / 8, channels_}};
    }
    bool setTensorAddress(const char *name, void *memory) noexcept {
        (std::strcmp(name, "frames") == 0 ? frame_ : embedding_) = memory;
        return true;
    }
    bool enqueueV3(cudaStream_t) noexcept {
        const auto *bgr = static_cast<const uint8_t *>(frame_);
        if (bgr[0] == 255) {  // how a test has it fail
            log_.log(ILogger::Severity::kERROR, "the first pixel is too blue");
            return false;
        }
        auto *out = static_cast<float *>(embedding_);
        const int64_t height = shape_.d[1], width = shape_.d[2];
        for (int64_t top = 0; top < height; top += 8)
            for (int64_t left = 0; left < width; left += 8, out += channels_) {
                float square = 1.0f;
                for (int64_t c = 0; c < channels_; ++c) out[c] = 0.0f;
                out[3] = 1.0f;
                for (int64_t y = top; y < top + 8 && y < height; ++y)
                    for (int64_t x = left; x < left + 8 && x < width; ++x)
                        for (int c = 0; c < 3; ++c) out[c] += bgr[(y * width + x) * 3 + c];
                for (int c = 0; c < 3; ++c) square += out[c] * out[c];
                for (int c = 0; c < 4; ++c) out[c] /= std::sqrt(square);
            }
        return true;
    }

   private:
    ILogger &log_;
    int64_t channels_;
    int32_t profile_ = -1;
    Dims shape_{};
    void *frame_ = nullptr, *embedding_ = nullptr;
};

class ICudaEngine {
   public:
    ICudaEngine(ILogger &log, DataType output, int64_t channels) : log_(log), output_(output), channels_(channels) {}
    IExecutionContext *createExecutionContext() noexcept { return new IExecutionContext(log_, channels_); }
    TensorIOMode getTensorIOMode(const char *name) const noexcept {
        if (std::strcmp(name, "frames") == 0) return TensorIOMode::kINPUT;
        return std::strcmp(name, "embedding") == 0 ? TensorIOMode::kOUTPUT : TensorIOMode::kNONE;
    }
    DataType getTensorDataType(const char *name) const noexcept {
        return std::strcmp(name, "frames") == 0 ? DataType::kUINT8 : output_;
    }
    int32_t getNbOptimizationProfiles() const noexcept { return 2; }
    Dims getProfileShape(const char *, int32_t profile, OptProfileSelector which) const noexcept {
        const int64_t side[2][2] = {{16, 64}, {65, 128}};
        const int64_t n = side[profile][which == OptProfileSelector::kMAX];
        return {4, {1, n, n, 3}};
    }

   private:
    ILogger &log_;
    DataType output_;
    int64_t channels_;
};

class IRuntime {
   public:
    explicit IRuntime(ILogger &log) : log_(log) {}
    ICudaEngine *deserializeCudaEngine(const void *plan, size_t size) noexcept {
        const std::string text(static_cast<const char *>(plan), size);
        const std::string kind = text.substr(0, 8);
        const DataType type = kind == "f32 plan" ? DataType::kFLOAT : DataType::kHALF;
        if (kind == "f32 plan" || kind == "f16 plan") return new ICudaEngine(log_, type, text == kind ? 4 : std::stoi(text.substr(8)));
        log_.log(ILogger::Severity::kERROR, "not a plan");
        return nullptr;
    }

   private:
    ILogger &log_;
};
inline IRuntime *createInferRuntime(ILogger &log) noexcept { return new IRuntime(log); }

}  // namespace nvinfer1
