// Mask embedding at inference (Li et al. 2023, algorithm S1): one stream's values, and the rounds that refine its masks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
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

// What is known of every object's looks: its values at its reference and at the most recent frames. Frames are numbered as the
// memory numbers them, whose top-k says where to read.
class ValueMemory {
   public:
    ValueMemory(const MemoryOptions &options, int32_t channels);

    // Makes a frame the reference of objects.
    void refer(int64_t frame, std::span<const uint8_t> ids);
    // Keeps the values f32 [ids, cells, V] of a frame. Every object is given before the next frame is read.
    void put(int64_t frame, std::span<const uint8_t> ids, const float *values);
    // V_q of the memory's newest frame, f32 [ids, cells, V].
    void read(Memory &memory, std::span<const uint8_t> ids, float *out, ThreadPool &pool);
    void remove(uint8_t id);

   private:
    // Objects that were marked in the same frame read with the same neighbours.
    struct Block {
        int64_t reference;
        std::vector<int32_t> frames;                   // in each slot, -1 for none: slot 0 the reference, then the recent frames in turn
        std::map<uint8_t, std::vector<float>> values;  // f32 [slots, cells, V]
    };
    size_t size() const { return static_cast<size_t>(cells_) * channels_; }  // of one object's values in one frame
    void drop_idle();

    const int32_t context_, cells_, top_k_, channels_;
    const float temperature_;
    std::vector<Block> blocks_;  // oldest reference first, as in the top-k of the memory
    std::vector<float> similarity_;
    std::vector<int32_t> frame_, cell_;
    std::vector<float> found_;
    std::vector<const float *> pointers_;
};

// Soft masks of a frame's pixels: the background, then objects by ascending id.
struct SoftPixels {
    Size size;
    float *values;
    ptrdiff_t step, channel_step;  // from pixel to pixel, and from channel to channel
};
// Draws the marked objects of a mask of any size into soft masks of objects `ids`, and returns their ids. Throws Error: one is not among them.
std::vector<uint8_t> draw_marks(const Picture &mask, std::span<const uint8_t> ids, const SoftPixels &soft, ThreadPool &pool);

class Refiner {
   public:
    // The newest frame as the networks see it.
    struct View {
        const uint8_t *bgr;  // dense, of the working size; only read in the call
        Size size;
        void *features;
    };

    Refiner(const MaskNetworks &networks, const RefineOptions &options, const MemoryOptions &memory);

    // After the memory took a frame: refines what it propagated and, with feedback, gives it back.
    void step(Memory &memory, const View &frame);
    // After objects were marked in the newest frame.
    void annotate(Memory &memory, const Picture &mask);
    void remove(const Memory &memory, uint8_t id);

    bool shows() const { return shows_; }  // whether labels come from here
    void labels(Size size, uint8_t *labels, float *confidence);

   private:
    using Pixels = std::vector<float>;  // f32 [height, width, 1 + objects] of the working frame: background, then ids ascending

    size_t objects() const { return ids_.size(); }
    size_t pixels() const { return static_cast<size_t>(size_.height) * size_.width; }
    void take_ids(const Memory &memory);
    void draw(Memory &memory, Pixels &out);   // what was propagated, enlarged
    const float *encode(const Pixels &soft);  // values f32 [objects, cells, V], until the next call
    void decode(const float *values);         // propagated_ and readout_ become soft_
    void give_back(Memory &memory);

    const MaskNetworks &networks_;
    const RefineOptions options_;
    const Size grid_;
    ThreadPool pool_;
    ValueMemory memory_;

    int64_t frame_ = -1;
    Size size_{};
    void *features_ = nullptr;
    std::vector<uint8_t> bgr_;
    std::vector<uint8_t> ids_, label_of_;  // the second by channel: background, then ids_
    std::vector<int32_t> channels_;
    bool shows_ = false;
    Pixels soft_, propagated_;
    std::vector<float> readout_, values_, planes_, logits_, cells_;
    SampleAxis rows_, columns_;
};

}  // namespace vosrt
