// One video's memory on a GPU: the class that libvosrt_cuda has in place of the processor's (src/memory.hpp), with the same
// meaning. Which objects there are and which references they have is kept on the host; arrays are on the GPU.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "device.hpp"
#include "kernels.hpp"

namespace vosrt {

// What a frame's work reads and writes on the GPU; a recorded graph fits as long as it stays the same.
struct FrameTask {
    const float *embedding = nullptr;  // f32 [h, w, K]
    int32_t height = 0, width = 0;     // of the labels
    uint8_t *labels = nullptr;         // u8 [height, width], or nullptr for none
    float *confidence = nullptr;       // f32 [height, width], may be nullptr
    uint64_t *totals = nullptr;        // [256][2], see LabelParams; may be nullptr

    bool operator==(const FrameTask &) const = default;
};

class Memory {
   public:
    explicit Memory(const MemoryOptions &options);

    void push(const float *embedding);
    void annotate(const uint8_t *mask, int32_t height, int32_t width, int64_t stride);
    void remove(int32_t object_id);
    void labels(int32_t height, int32_t width, uint8_t *labels, float *confidence);
    void soft_masks(float *masks) const;
    void set_soft_masks(const float *masks);
    void top_k(float *similarity, int32_t *frame, int32_t *cell) const;

    int32_t top_k_references() const { return static_cast<int32_t>(matched_.size()); }
    std::span<const uint8_t> object_ids() const { return std::span(order_ids_).subspan(1); }
    const MemoryOptions &options() const { return options_; }
    int64_t frames() const { return frames_; }
    int32_t references() const;
    int32_t threads() const { return 0; }
    vosrt_isa isa() const { return VOSRT_ISA_CUDA; }
    int64_t bytes() const;
    int32_t cells() const { return options_.height * options_.width; }

    void write(SessionWriter &out) const;
    void read(SessionReader &in);

    // What follows takes and gives arrays on the GPU, is queued, and not waited for.
    cuda::Queue &queue() const { return queue_; }
    const cuda::Gpu &gpu() const { return gpu_; }
    // push and label_pixels as one piece of work, which is recorded once it has run twice as it is.
    void frame(const FrameTask &task);
    // frame, waited for, with the milliseconds of its stages: advance, store, match, read-out, labels.
    static constexpr size_t kStages = 5;
    void time_frame(const FrameTask &task, float *ms);
    // A host's own recording of frame() was launched.
    void repeated();
    void label_pixels(const FrameTask &task) { label_pixels(task, {}); }
    // Labels of planes [1 + objects] in place of the newest frame's soft masks, if they have values.
    void label_pixels(const FrameTask &task, const cuda::SoftView &planes);
    // The newest frame's soft masks as planes [1 + objects] of any size; refined by a decoder's logits, a plane per
    // object; and planes as its soft masks. See mask_kernels.hpp.
    void draw(const cuda::Planes &out);
    void refine(const cuda::SoftView &logits, bool residual, const cuda::Planes &out);
    void keep(const cuda::SoftView &planes);
    // V_q of the objects of a reference, counted from the oldest: see cuda::ValuesParams.
    void values(int32_t reference, const float *at_reference, const float *recent, int32_t slots, int32_t channels,
                float *out);
    int64_t recordings() const { return recordings_; }

   private:
    struct Reference {
        int64_t frame;
        std::vector<uint8_t> ids;
        cuda::Buffer keys, bias, soft;
    };
    // A reference's context when the newest frame was matched.
    struct Matched {
        int64_t frame;
        int32_t copies;
    };
    // Work that was recorded, or is going to be.
    struct Recorded {
        FrameTask task;
        int32_t seen = 0;
        cuda::Graph graph;
    };

    void require_frame(const char *what) const;
    void build_window();
    void begin_frame();
    void queue_mean(const float *embedding);
    void queue_frame(const float *embedding, cuda::Stopwatch *watch = nullptr);
    void match_newest(cuda::Stopwatch *watch);
    void reserve_work(size_t references);
    void reserve_pixels(int32_t height, int32_t width);
    void upload_tables();
    void grow_channels(size_t objects);
    void update_order();
    void forget_recordings() { recorded_.clear(); }
    cuda::PlanOptions plan_options(size_t references) const;
    float *newest_soft() const;
    cuda::NewestMasks newest_masks() const;
    std::vector<float> download_soft() const;
    void upload_soft(const std::vector<float> &soft);
    // Where a frame's arrays begin, of the ring or of a reference.
    struct Slot {
        uint16_t *keys;
        float *bias, *soft;
    };
    Slot slot_of(int64_t frame) const;
    Slot slot_of(const Reference &reference) const;
    size_t slot_bytes(size_t objects) const;  // in a session
    void write_slot(SessionWriter &out, const Slot &slot) const;
    void read_slot(SessionReader &in, const Slot &slot);
    cuda::Buffer buffer(size_t bytes, const char *what) const { return {options_.device, bytes, what}; }

    const MemoryOptions options_;
    const cuda::Gpu gpu_;
    mutable cuda::Queue queue_;
    cuda::Grid grid_;
    cuda::MatchShape shape_{};
    int32_t padded_;
    std::vector<int32_t> half_width_;

    cuda::Buffer half_widths_, mean_, now_;
    cuda::Buffer ring_keys_, ring_bias_, ring_soft_;  // context + 1 slots, frame t in slot t mod their number
    cuda::Buffer embedding_;                          // of a frame that comes from the host
    cuda::Buffer lists_, neighbours_, jobs_, contexts_, table_, owner_, channels_, ids_;
    cuda::Buffer labels_, confidence_;

    std::vector<Reference> references_;  // oldest first; the first also gives the background
    int64_t frames_ = 0;
    std::array<int32_t, 256> channel_{};   // of an id; -1 = not tracked; background has channel 0
    size_t capacity_ = 4;                  // channels that soft masks have room for
    std::vector<int32_t> order_channels_;  // background, then objects by ascending id
    std::vector<uint8_t> order_ids_;
    std::vector<Matched> matched_;
    std::vector<Recorded> recorded_;
    int64_t recordings_ = 0;
};

}  // namespace vosrt
