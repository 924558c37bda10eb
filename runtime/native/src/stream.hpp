// A model (an engine and its contract) and a stream (one video): the one place that knows the order of events of a frame.
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
#include "objects.hpp"
#include "picture.hpp"
#include "refiner.hpp"
#include "resample.hpp"
#include "vosrt.h"

namespace vosrt {

// Throws Error unless `size` is a short side in pixels or a vosrt_size.
void check_size(int32_t size);

class Model : public MaskNetworks {
   public:
    // Throws Error where an option is out of range; the engine is then still the caller's.
    Model(const vosrt_model_options &options, const vosrt_engine &engine);
    ~Model();
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    // The working frame for a frame of this size; `short_side` may be a vosrt_size. Throws Error.
    Size working_size(Size frame, int32_t short_side) const;
    Size grid(Size working) const;
    int32_t largest_grid_side() const { return grid({options_.max_side, options_.max_side}).height; }
    // Throws Error(VOSRT_ENGINE_FAILED) with the engine's words. `features` may be nullptr, see vosrt_encode_task.
    void encode(const uint8_t *bgr, Size working, float *embedding, void **features) const;
    void encode_masks(const vosrt_encode_masks_task &task) const override;
    void decode_masks(const vosrt_decode_masks_task &task) const override;
    void release(void *features) const;

    const vosrt_memory_options &memory_options() const { return memory_; }
    int32_t channels() const { return options_.channels; }
    // Whether the mask networks take and give arrays on the GPU of the memory.
    bool refines_on_gpu() const { return (engine_.flags & VOSRT_ENGINE_ON_GPU) != 0; }
    int32_t stride() const { return options_.stride; }  // pixels of the working frame per cell
    bool encodes() const { return engine_.encode != nullptr; }
    // How a stream refines masks with these rounds, a vosrt_refine; nothing where it does not. Throws Error.
    std::optional<RefineOptions> refinement(int32_t rounds) const;
    const std::array<uint8_t, 32> &graph_sha256() const { return graph_sha256_; }
    const std::string &description() const { return description_; }
    // Whether the engine has threads of its own, which a fork leaves behind.
    bool has_threads() const { return (engine_.flags & VOSRT_ENGINE_THREADS) != 0; }

   private:
    int32_t whole_cells(int32_t side) const;
    template <class Task>
    void run(vosrt_status (*network)(void *, const Task *), const Task &task) const;

    vosrt_model_options options_;
    vosrt_memory_options memory_ = default_memory_options();
    std::array<uint8_t, 32> graph_sha256_;
    vosrt_engine engine_;
    std::string description_;
    mutable std::mutex serial_;
    const uint32_t forks_ = fork_count();
};

class Stream {
   public:
    Stream(std::shared_ptr<const Model> model, const vosrt_stream_options &options);
    ~Stream() { drop_features(); }
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;

    void step(const Picture &frame, const std::optional<Picture> &mask);
    void take(const vosrt_embedding &embedding, const std::optional<Picture> &mask);
    void expect(const vosrt_embedding &embedding);  // the host pushes to memory()
    void refine(const vosrt_embedding &embedding);  // the frame that it pushed
    void add(const Picture &mask);
    void remove(int32_t object_id);
    const vosrt_result &result();  // of the newest frame
    void finish_call();            // tells the callback
    void copy_labels(uint8_t *labels, int64_t stride) const;
    // Objects in labels of a frame, and what became of them.
    void measure(int64_t frame, const LabelMap &map, std::span<const uint8_t> ids, vosrt_object *objects);
    std::shared_ptr<Memory> memory() const { return memory_; }
    bool has_threads() const { return model_->has_threads() || (memory_ != nullptr && memory_->has_threads()); }

    vosrt_session session() const;
    Memory &saved_memory();
    void load(std::span<const uint8_t> data);

   private:
    void require_frame(const char *what) const;
    void require_networks_on_host() const;
    void check_mask(const Picture &mask, Size frame) const;
    void check_shape(Size frame, Size grid) const;
    void reserve_results();
    void begin(Size frame, Size grid);
    Size accept(const vosrt_embedding &embedding) const;
    void make_memory();
    struct Encoded;
    void follow(const Encoded &encoded, const std::optional<Picture> &mask);
    void drop_features();
    void annotate(const Picture &mask);
    void label();
    void overrule();
    bool annotated() const { return memory_ != nullptr && annotated_at_ == memory_->objects().frames(); }
    bool stale() const { return labelled_ != memory_->revision(); }

    const std::shared_ptr<const Model> model_;
    const vosrt_stream_options options_;
    vosrt_memory_options memory_options_;
    std::shared_ptr<Memory> memory_;  // made for the first frame
    const std::optional<RefineOptions> refinement_;
    std::unique_ptr<Refiner> refiner_;  // made with the memory
    void *features_ = nullptr;          // of the newest frame, where this stream had it encoded
    Size frame_{}, grid_{};

    FrameScaler scaler_;
    std::vector<uint8_t> working_;
    AlignedBuffer embedding_;
    std::vector<uint8_t> labels_, annotation_;
    std::vector<float> confidence_;
    int64_t annotated_at_ = -1;  // frames taken when annotation_ was marked
    int64_t labelled_ = -1;      // revision of the memory that labels_ are of
    std::array<vosrt_object, 255> objects_{};
    PresenceOptions presence_;
    std::array<vosrt_presence, 256> presences_{};  // by id; zero where an object is not tracked
    std::array<float, 255> object_confidence_{};
    vosrt_result result_{};
};

}  // namespace vosrt
