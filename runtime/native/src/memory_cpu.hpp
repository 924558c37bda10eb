// The memory's arrays on the processor, and how a new frame reads them.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.hpp"
#include "guided.hpp"
#include "memory.hpp"
#include "motion.hpp"
#include "search.hpp"
#include "thread_pool.hpp"

namespace vosrt {

class CpuMemory final : public Memory {
   public:
    explicit CpuMemory(const MemoryOptions &options);

    void labels(int32_t height, int32_t width, uint8_t *labels, float *confidence) override;
    int32_t threads() const override { return pool_.size(); }
    bool has_threads() const override { return pool_.size() > 1; }
    int64_t bytes() const override;
    int32_t head() const override { return search_.head(); }
    float survivors() const override { return search_.survivors(); }

   private:
    struct Slot {
        AlignedBuffer keys;
        std::vector<float> soft;  // [mask_cells][capacity_]
    };
    struct CellBox {
        int32_t left, top, right, bottom;  // the last two excluded
    };
    struct ReferenceSlot {
        int64_t frame;
        Slot slot;
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
    Means means() const override { return {mean_, centre_}; }
    void set_means(const Means &means) override;
    Biases biases() const override { return biases_; }
    void set_biases(const Biases &biases) override { biases_ = biases; }
    void set_guide(const uint8_t *bgr, int32_t height, int32_t width, int64_t stride) override { guide_.set(bgr, height, width, stride); }
    GuidePicture guide_picture() override;
    void restore_guide(const GuidePicture &guide) override { guide_.restore(guide.pixels, guide.height, guide.width); }

    Slot &slot_of(int64_t frame) { return slots_[frame % slots_.size()]; }
    const Slot &slot_of(int64_t frame) const { return slots_[frame % slots_.size()]; }
    Slot &newest() { return slot_of(objects().newest()); }
    Slot &reference_slot(int64_t frame);

    void build_window();
    const float *centred(const float *embedding);
    void set_mean_square();
    void settle_newest();
    void calibrate(const ObjectTable::Reference &reference);
    void look_back(const std::byte *keys);
    void make_all_heads();
    void match_newest();
    void move_together();
    void find_step(int32_t cell);
    void sum_steps(int32_t age, int32_t channel, int32_t worker, motion::Sums<float> *out);
    void weigh_motion(int32_t cell);
    template <class Body>
    void for_each_part(int32_t cell, const Body &body) const;
    float mean_soft(const Slot &slot, int32_t cell, int32_t channel) const;
    template <class Body>
    void for_each_group(const Body &body);
    void propagate(int32_t cell, float *sums, float *frame) const;
    bool reads_like_next(size_t r, int32_t cell) const;
    void read_out(size_t reference, int32_t cell, float *sums) const;
    Slot make_slot(size_t capacity) const;
    void grow_channels(size_t channels);
    template <class Body>
    void for_each_slot(const Body &body);  // that has been made

    const MatchKernel &kernel_;
    ThreadPool pool_;
    Search search_;
    const std::vector<int32_t> half_width_;
    std::vector<uint32_t> window_;

    std::vector<Slot> slots_;                // context + 1, frame t in slot t mod their number
    std::vector<ReferenceSlot> references_;  // oldest first, as in objects()
    std::vector<float> mean_;                // of the first frame's embedding as it is matched, [channels]
    std::vector<float> centre_;              // of the first frame's embedding as it came, [channels], if it is removed
    std::vector<float> centred_;             // the newest embedding without it, [cells][channels]
    float mean_square_ = 0.0f;
    Biases biases_;
    std::vector<uint8_t> looks_back_;                              // cells of a reference that are held against the newest frame
    std::vector<Candidate> went_to_;                               // the most similar cell of the newest frame, of those
    std::vector<motion::Step> steps_;                              // [kAges][cells]
    std::vector<motion::Sums<float>> background_steps_;            // likewise, over windows
    std::vector<std::vector<motion::Sums<float>>> object_steps_;   // per worker, [cells]
    std::vector<std::vector<motion::Sums<double>>> column_steps_;  // per worker, [width]
    std::vector<float> evidence_;                                  // [objects][cells], then their factors
    size_t capacity_ = 4;                                          // channels that soft masks have room for

    int32_t patch_columns_, patch_rows_;
    int32_t group_columns_ = 2, group_rows_ = 4;  // patches of one job
    std::vector<AlignedBuffer> workspace_;        // per worker
    std::vector<std::vector<float>> sums_;        // per worker, [parts * parts][capacity_]
    std::vector<Candidate> candidates_;           // [references][cells][top_k], youngest reference first
    std::vector<const std::byte *> recent_keys_;
    std::vector<MatchReference> match_references_;
    SampleAxis rows_, columns_;
    Guide guide_;
    std::vector<int32_t> guided_channels_;  // 0, 1, …: guided masks have no gaps
};

}  // namespace vosrt
