// Mask embedding at inference (Li et al. 2023, algorithm S1): one stream's values, and the rounds that refine its masks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory.hpp"
#include "picture.hpp"
#include "resample.hpp"
#include "thread_pool.hpp"
#include "vosrt.h"

namespace vosrt {

struct Size {
    int32_t height, width;
    bool operator==(const Size &) const = default;
};
inline std::string text_of(Size size) { return std::to_string(size.width) + " x " + std::to_string(size.height); }

struct RefineOptions {
    int32_t value_channels, rounds;
    bool residual, feedback;
};

// What runs the mask networks. Throws Error(VOSRT_ENGINE_FAILED).
class MaskNetworks {
   public:
    virtual ~MaskNetworks() = default;
    virtual void encode_masks(const vosrt_encode_masks_task &task) const = 0;
    virtual void decode_masks(const vosrt_decode_masks_task &task) const = 0;
};

// Soft masks of a frame's pixels: the background, then objects by ascending id.
struct SoftPixels {
    Size size;
    float *values;
    ptrdiff_t step, channel_step;  // from pixel to pixel, and from channel to channel
};
// Draws the marked objects of a mask of any size into soft masks of objects `ids`, and returns their ids. Throws Error: one is not among them.
std::vector<uint8_t> draw_marks(const Picture &mask, std::span<const uint8_t> ids, const SoftPixels &soft, ThreadPool &pool);

// The newest frame as the networks see it.
struct FrameView {
    const uint8_t *bgr;  // dense, of the working size
    Size size;
    void *features;
};

// Objects that were marked in the same frame, and so read with the same neighbours.
struct ValueBlock {
    int64_t reference;
    std::vector<int64_t> frames;  // in each slot, -1 for none: slot 0 the reference, then the recent frames in turn
    std::vector<uint8_t> ids;
};

struct RefineTask {
    const MaskNetworks &networks;
    RefineOptions options;
    Memory &memory;
};

// The arrays of one stream's refinement and what is done to them: in host memory, or, in libvosrt_cuda, on the GPU.
// *Masks* are the newest frame's at its working size, of the background, then of the objects by ascending id.
class RefineArrays {
   public:
    explicit RefineArrays(const RefineTask &task)
        : networks_(task.networks), options_(task.options), grid_{task.memory.options().height, task.memory.options().width} {}
    virtual ~RefineArrays() = default;

    virtual void follow(const FrameView &frame) = 0;
    virtual void set_ids(std::span<const uint8_t> ids) = 0;                  // of the objects, ascending
    virtual void draw() = 0;                                                 // masks = what was propagated, enlarged
    virtual std::vector<uint8_t> mark(const Picture &mask) = 0;              // in masks; see draw_marks
    virtual void drop(size_t channel) = 0;                                   // a channel of masks becomes background
    virtual void encode() = 0;                                               // values = those of masks
    virtual void decode(bool from_readout) = 0;                              // masks = what the decoder makes of readout and values
    virtual void give_back() = 0;                                            // masks = what later frames read
    virtual void show() = 0;                                                 // masks are what labels are made of
    virtual void labels(Size size, uint8_t *labels, float *confidence) = 0;  // of masks that are shown
    // What is known of an object's looks: f32 [slots, cells, V] with slots as in ValueBlock.
    virtual void hold(uint8_t id) = 0;
    virtual void forget(uint8_t id) = 0;
    virtual void keep(uint8_t id, size_t index, int32_t slot) = 0;  // values of the index-th object
    virtual void read(std::span<const ValueBlock> blocks) = 0;      // readout = V_q of the newest frame

   protected:
    // The networks' runs, on arrays where these ones are.
    void run_encoder(const float *masks, float *values) const;
    void run_decoder(const float *readout, const float *values, float *logits) const;

    size_t objects() const { return ids_.size(); }
    size_t pixels() const { return static_cast<size_t>(view_.size.height) * view_.size.width; }
    Size quarter() const { return {(view_.size.height + 3) / 4, (view_.size.width + 3) / 4}; }  // of the frame, as the decoder gives it
    // Of one object's values in one frame.
    size_t value_size() const { return static_cast<size_t>(grid_.height) * grid_.width * options_.value_channels; }

    const MaskNetworks &networks_;
    const RefineOptions options_;
    const Size grid_;
    FrameView view_{};
    std::vector<uint8_t> ids_;
};

std::unique_ptr<RefineArrays> make_host_arrays(const RefineTask &task);
// On the GPU of the memory. Throws Error where this library has none.
std::unique_ptr<RefineArrays> make_device_arrays(const RefineTask &task);

// The order of events. Frames are numbered as the memory numbers them, whose top-k says where to read.
class Refiner {
   public:
    Refiner(const RefineOptions &options, const Memory &memory, std::unique_ptr<RefineArrays> arrays);

    // After the memory took a frame: refines what it propagated and, with feedback, gives it back.
    void step(const FrameView &frame);
    // After objects were marked in the newest frame.
    void annotate(const Picture &mask);
    void remove(uint8_t id);

    bool shows() const { return shows_; }  // whether labels come from here
    void labels(Size size, uint8_t *labels, float *confidence) { arrays_->labels(size, labels, confidence); }

   private:
    void take_ids();
    void show();
    void refer(std::span<const uint8_t> ids);  // makes the newest frame their reference
    void put();                                // keeps the newest frame's values
    void forget(uint8_t id);
    void drop_idle();
    void check_values() const;

    const RefineOptions options_;
    const Memory &memory_;
    const std::unique_ptr<RefineArrays> arrays_;

    int64_t frame_ = -1;
    std::vector<uint8_t> ids_;
    bool shows_ = false;
    std::vector<ValueBlock> blocks_;  // oldest reference first, as in the top-k of the memory
};

}  // namespace vosrt
