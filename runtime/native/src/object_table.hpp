// Which objects a memory tracks: their ids, the channels of the soft masks in which they lie, and the annotated frames that they are
// read from. Memories of the processor and of a GPU, and sessions, share this table; it holds no array of a frame.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace vosrt {

class ObjectTable {
   public:
    // An annotated frame, and the objects whose latest annotation it has. The first reference may have none: background is read
    // from it for as long as the video goes on.
    struct Reference {
        int64_t frame;
        std::vector<uint8_t> ids;
    };

    ObjectTable() { update_order(); }
    // The table of a session: `ids` ascend, and each of them is in exactly one reference.
    ObjectTable(int64_t frames, std::span<const uint8_t> ids, std::vector<Reference> references);

    int64_t frames() const { return frames_; }
    int64_t newest() const { return frames_ - 1; }
    std::span<const uint8_t> ids() const { return std::span(order_ids_).subspan(1); }
    // Background, then objects by ascending id: the order in which ties are broken and masks are handed out.
    const std::vector<int32_t> &order_channels() const { return order_channels_; }
    const std::vector<uint8_t> &order_ids() const { return order_ids_; }
    int32_t channel(uint8_t id) const { return channel_[id]; }                // -1 = not tracked
    const std::vector<Reference> &references() const { return references_; }  // oldest first
    int32_t references_in_use() const;                                        // that still have an object
    bool has_reference(int64_t frame) const;

    void take_frame() { ++frames_; }
    void drop_frame() { --frames_; }  // which could not be taken
    // The newest frame becomes the reference of these objects; those that are new take the lowest free channels.
    void mark(std::span<const uint8_t> ids);
    // Returns the channel that the object had. Throws Error where it is not tracked.
    int32_t remove(int32_t id);

   private:
    void drop_idle_references();
    void update_order();

    int64_t frames_ = 0;
    std::array<int32_t, 256> channel_ = none_tracked();  // background has channel 0
    std::vector<Reference> references_;
    std::vector<int32_t> order_channels_;
    std::vector<uint8_t> order_ids_;

    static constexpr std::array<int32_t, 256> none_tracked() {
        std::array<int32_t, 256> none{};
        none.fill(-1);
        return none;
    }
};

}  // namespace vosrt
