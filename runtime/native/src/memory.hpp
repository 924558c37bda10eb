// One video's memory: keys and soft masks of the recent frames and of the references, and how a new frame reads them.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "aligned.hpp"
#include "cpu/match.hpp"
#include "resample.hpp"
#include "thread_pool.hpp"
#include "vosrt.h"

namespace vosrt {

struct MemoryOptions {
    int32_t height, width, channels;
    int32_t context, window;
    float radius;
    int32_t top_k;
    float temperature;
    bool pad_context, global_reference, yield_background;
    Alignment alignment;
    vosrt_isa isa;  // resolved, never AUTO
    int32_t threads;
    int32_t device;  // of libvosrt_cuda
};

// Throws Error where a value is out of range, or no path fits.
MemoryOptions resolve(const vosrt_memory_options &options);

class SessionReader;
class SessionWriter;

}  // namespace vosrt

#if defined(VOSRT_CUDA_LIBRARY)
#include "../cuda/memory_cuda.hpp"
#else

namespace vosrt {

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
    int32_t references() const;  // that still have an object
    int32_t threads() const { return pool_.size(); }
    vosrt_isa isa() const { return options_.isa; }
    int64_t bytes() const;
    int32_t cells() const { return options_.height * options_.width; }

    // Everything that later frames depend on, see session.cpp. Reading replaces the state of a memory that was just made.
    void write(SessionWriter &out) const;
    void read(SessionReader &in);

   private:
    struct Slot {
        AlignedBuffer keys;
        std::vector<float> soft;  // [cells][capacity_]
    };
    struct Reference {
        int64_t frame;
        std::vector<uint8_t> ids;  // annotated here
        Slot slot;
    };
    // What a reference's context was when the newest frame was matched; lets candidates be traced back.
    struct Matched {
        int64_t frame;
        int32_t recent, copies;
    };

    Slot &slot_of(int64_t frame) { return slots_[frame % slots_.size()]; }
    const Slot &slot_of(int64_t frame) const { return slots_[frame % slots_.size()]; }
    Slot &newest() { return slot_of(frames_ - 1); }
    const Slot &newest() const { return slot_of(frames_ - 1); }
    void require_frame(const char *what) const;

    void build_window();
    void set_mean(const float *embedding);
    void set_mean_square();
    void match_newest();
    void propagate(int32_t cell, float *sums, float *soft) const;
    void read_out(int32_t reference, int32_t cell, float *sums) const;
    void reserve_work(size_t references);
    Slot make_slot(size_t capacity) const;
    void grow_channels(size_t objects);
    template <class Body>
    void for_each_slot(const Body &body);
    void update_order();
    size_t slot_bytes(size_t objects) const;  // in a session
    void write_slot(SessionWriter &out, const Slot &slot) const;
    void read_slot(SessionReader &in, Slot &slot) const;

    const MemoryOptions options_;
    const MatchKernel &kernel_;
    ThreadPool pool_;
    std::vector<int32_t> half_width_;
    std::vector<uint32_t> window_;

    std::vector<Slot> slots_;  // context + 1, frame t in slot t mod their number
    std::vector<Reference> references_;  // oldest first; the first also gives the background
    int64_t frames_ = 0;
    std::vector<float> mean_;  // of the first frame's embedding, [channels]
    float mean_square_ = 0.0f;

    std::array<int32_t, 256> channel_{};   // of an id; -1 = not tracked; background has channel 0
    size_t capacity_ = 4;                  // channels that soft masks have room for
    std::vector<int32_t> order_channels_;  // background, then objects by ascending id
    std::vector<uint8_t> order_ids_;

    int32_t patch_columns_, patch_rows_;
    int32_t group_columns_ = 2, group_rows_ = 4;  // patches of one job
    std::vector<AlignedBuffer> workspace_;       // per worker
    std::vector<std::vector<float>> sums_;       // per worker, [capacity_]
    std::vector<Candidate> candidates_;          // [references][cells][top_k]
    std::vector<Matched> matched_;
    std::vector<const std::byte *> recent_keys_;
    std::vector<MatchReference> match_references_;
    SampleAxis rows_, columns_;
};

}  // namespace vosrt

#endif  // VOSRT_CUDA_LIBRARY
