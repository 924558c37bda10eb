// The memory's arrays on a GPU, and the work that is queued for a frame.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "device.hpp"
#include "guide_cuda.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "picture.hpp"
#include "search.hpp"

namespace vosrt {

// What a frame's work reads and writes on the GPU; a recorded graph fits as long as it stays the same.
struct FrameTask {
    const float *embedding = nullptr;  // f32 [h, w, K]
    int32_t height = 0, width = 0;     // of the labels
    uint8_t *labels = nullptr;         // u8 [height, width], or nullptr for none
    float *confidence = nullptr;       // f32 [height, width], may be nullptr
    uint64_t *totals = nullptr;        // [256][2], see LabelParams; may be nullptr
    const uint8_t *bgr = nullptr;      // picture of the frame, u8 [bgr_height, bgr_width, 3]; may be nullptr
    int32_t bgr_height = 0, bgr_width = 0;

    bool operator==(const FrameTask &) const = default;
};

struct FreePinned {
    void operator()(std::byte *memory) const { cuda::free_pinned(memory); }
};

class CudaMemory final : public Memory {
   public:
    explicit CudaMemory(const MemoryOptions &options);

    void labels(int32_t height, int32_t width, uint8_t *labels, float *confidence) override;
    int32_t threads() const override { return 0; }
    bool has_threads() const override { return true; }  // the driver's; no part of CUDA survives a fork
    int64_t bytes() const override;
    int32_t head() const override { return shape_.head; }
    float survivors() const override;

    // What follows takes and gives arrays on the GPU, is queued, and not waited for.
    cuda::Queue &queue() const { return queue_; }
    // push and label_pixels as one piece of work, which is recorded once it has run twice as it is.
    void frame(const FrameTask &task);
    // frame, waited for, with the milliseconds of its stages: advance, store, match, read-out, labels.
    static constexpr size_t kStages = 5;
    void time_frame(const FrameTask &task, float *ms);
    // A host's own recording of frame() was launched.
    void repeated();
    // The picture of the newest frame, dense.
    void guide_with(const uint8_t *bgr, int32_t height, int32_t width);
    // Of what is shown: planes, guided masks, or the newest frame's soft masks.
    void label_pixels(const FrameTask &task);
    // Labels are made of planes [1 + objects] in place of the newest frame's soft masks, if they have values, until the memory changes.
    void show(const cuda::SoftView &planes);
    // Draws marked objects, which are tracked, into planes, and returns their ids; waited for.
    std::vector<uint8_t> mark(const cuda::Planes &planes, const Picture &mask);
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
    // Where a frame's arrays begin, of the ring or of a reference.
    struct Slot {
        uint16_t *keys;
        float *bias, *soft;
        uint16_t *heads;  // nullptr where nothing is bounded
    };
    struct ReferenceSlot {
        int64_t frame;
        cuda::Buffer keys, bias, soft, heads;

        Slot slot() const { return {keys.data<uint16_t>(), bias.data<float>(), soft.data<float>(), heads.data<uint16_t>()}; }
    };
    // Work that was recorded, or is going to be.
    struct Recorded {
        FrameTask task;
        int32_t seen = 0;
        cuda::Graph graph;
    };

    void take(const float *embedding) override;
    void reserve_frames(int64_t first, int64_t end) override;
    void reserve_objects(const ObjectTable &table) override;
    void reserve_work(size_t references) override;
    void with_slot(Place place, Part part, Access access, const std::function<void(const HostSlot &)> &use) override;
    size_t capacity() const override { return capacity_; }
    void keep_reference() override;
    void release(int32_t channel) override;
    void objects_changed() override;
    const Candidate *neighbours(size_t reference) override;
    Means means() const override;
    void set_means(const Means &means) override;
    Biases biases() const override;
    void set_biases(const Biases &biases) override;

    void set_guide(const uint8_t *bgr, int32_t height, int32_t width, int64_t stride) override;
    GuidePicture guide_picture() override;
    void restore_guide(const GuidePicture &picture) override;

    void reserve_guide(const cuda::Grid &size);
    bool takes_picture(const FrameTask &task) const { return guide_.wanted() && task.bgr != nullptr; }
    cuda::Graph record(const std::function<void()> &work);
    void queue_mean(const float *embedding);
    const float *queue_centred(const float *embedding);
    void prepare(const FrameTask &task);
    void queue_task(const FrameTask &task, cuda::Stopwatch *watch = nullptr);
    void add_to_capture(const FrameTask &task);
    void queue_frame(const float *embedding, cuda::Stopwatch *watch);
    void settle_newest();
    void match_newest(cuda::Stopwatch *watch);
    void reserve_ring(int64_t slots);
    void reserve_pixels(int32_t height, int32_t width);
    cuda::Buffer step_rows_for(size_t capacity) const;
    void grow_channels(size_t channels);
    void upload_tables();
    void forget_recordings() { recorded_.clear(); }
    cuda::PlanOptions plan_options(size_t references) const;
    cuda::NewestMasks newest_masks() const;
    Slot slot_of(int64_t frame) const;
    Slot reference_slot(int64_t frame) const;
    void learn_axes(const Slot &frame);
    void queue_heads(const Slot &first, int32_t count, const int64_t *now);
    cuda::Buffer buffer(size_t bytes, const char *what) const { return {options_.device, bytes, what}; }

    const cuda::Gpu gpu_;
    mutable cuda::Queue queue_;
    // Labels come to the host beside it, so that what others queued on it meanwhile, such as the next frame's network, is not waited for.
    cuda::Queue copies_;
    const cuda::Event labelled_;
    cuda::Grid grid_;
    cuda::MatchShape shape_{};
    int32_t padded_;
    const std::vector<int32_t> half_width_;

    cuda::Buffer half_widths_, mean_, now_;
    cuda::Buffer centre_, centred_;                                // what centring removes, and the newest embedding without it
    cuda::Buffer ring_keys_, ring_bias_, ring_soft_, ring_heads_;  // ring_slots_ of context + 1 slots, frame t in slot t mod context + 1
    // Of the bounded search: axes f32 [channels][head], of the first reference; limits f32 [references][cells].
    const SearchMode mode_ = search_mode();
    bool learnt_ = false;
    cuda::Buffer axes_, limits_, search_;
    cuda::Buffer embedding_;  // of a frame that comes from the host
    cuda::Buffer lists_, neighbours_, jobs_, contexts_, table_, owner_, channels_, ids_;
    cuda::Buffer biases_;             // f32 [256], by channel, see Memory::Biases
    cuda::Buffer steps_, step_rows_;  // see cuda::MotionParams; the latter has room for capacity_ masks
    cuda::Buffer went_to_;            // i32 [references][cells]: see cuda::CalibrateParams
    cuda::Buffer labels_, confidence_;
    std::unique_ptr<std::byte, FreePinned> landed_;  // of both
    cuda::CudaGuide guide_;
    bool captured_picture_ = false;  // whether the host's newest recording of frame() has a picture
    cuda::SoftView shown_{};
    int64_t shown_at_ = -1;  // revision

    int64_t ring_slots_ = 0;
    std::vector<ReferenceSlot> references_;  // oldest first, as in objects()
    size_t capacity_ = 4;                    // channels that soft masks have room for
    std::vector<Recorded> recorded_;
    int64_t recordings_ = 0;
    std::vector<Candidate> found_;  // what neighbours() gave
};

}  // namespace vosrt
