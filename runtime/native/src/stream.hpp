// A model (an engine and its contract) and a stream (one video): the order of events, as vosrt/stream.py has it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aligned.hpp"
#include "c_api.hpp"
#include "memory.hpp"
#include "picture.hpp"
#include "resample.hpp"
#include "vosrt.h"

namespace vosrt {

struct Size {
    int32_t height, width;
    bool operator==(const Size &) const = default;
};

class Model {
   public:
    // Throws Error where an option is out of range; the engine is then still the caller's.
    Model(const vosrt_model_options &options, const vosrt_engine &engine);
    ~Model();
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    // The working frame for a frame of this size; `short_side` 0 is the model's, which never enlarges. Throws Error.
    Size working_size(Size frame, int32_t short_side) const;
    Size grid(Size working) const;
    // Throws Error(VOSRT_ENGINE_FAILED) with the engine's words.
    void encode(const uint8_t *bgr, Size working, float *embedding) const;

    const vosrt_memory_options &memory_options() const { return memory_; }
    int32_t channels() const { return options_.channels; }
    const std::array<uint8_t, 32> &graph_sha256() const { return graph_sha256_; }
    const std::string &description() const { return description_; }

   private:
    int32_t whole_cells(int32_t side) const;

    vosrt_model_options options_;
    vosrt_memory_options memory_{};
    std::array<uint8_t, 32> graph_sha256_;
    vosrt_engine engine_;
    std::string description_;
    mutable std::mutex serial_;
};

class Stream {
   public:
    Stream(std::shared_ptr<const Model> model, const vosrt_stream_options &options);

    void step(const Picture &frame, const std::optional<Picture> &mask);
    void add(const Picture &mask);
    void remove(int32_t object_id);
    const vosrt_result &result();  // of the newest frame
    void finish_call();            // tells the callback
    void copy_labels(uint8_t *labels, int64_t stride) const;
    vosrt_memory *memory() { return memory_.get(); }

    vosrt_session session() const;
    const Memory &saved_memory() const;
    void load(std::span<const uint8_t> data);

   private:
    void require_frame(const char *what) const;
    void check_mask(const Picture &mask, Size frame) const;
    void begin(Size frame, Size grid);
    void annotate(const Picture &mask);
    void label();
    void overrule();
    void measure_confidence();

    const std::shared_ptr<const Model> model_;
    const vosrt_stream_options options_;
    vosrt_memory_options memory_options_;
    std::unique_ptr<vosrt_memory> memory_;  // made for the first frame
    Size frame_{}, grid_{};

    FrameScaler scaler_;
    std::vector<uint8_t> working_;
    AlignedBuffer embedding_;
    std::vector<uint8_t> labels_, annotation_;
    std::vector<float> confidence_;
    bool annotated_ = false;  // the newest frame, with annotation_
    bool stale_ = true;       // labels_ are not the memory's
    std::array<float, 256> object_confidence_{};
    vosrt_result result_{};
};

}  // namespace vosrt
