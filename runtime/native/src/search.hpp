// How a memory's matches are bounded (cpu/match_bound.hpp): the axes, the length of heads, and whether bounds pay at all.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/match.hpp"

namespace vosrt {

// VOSRT_MATCH=full computes every product, =bounded bounds even where that does not pay; results are the same.
enum class SearchMode {
    automatic,
    full,
    bounded
};
SearchMode search_mode();  // throws Error where the variable says something else
// Beyond these channels a head is no small part of a key, or axes take long to find.
constexpr bool can_bound(int32_t channels) { return channels >= 64 && channels <= 4096; }
// Axes are found from every so-manieth cell.
constexpr int32_t sample_step(int32_t cells) { return cells < 512 ? 1 : cells / 512; }

class Search {
   public:
    Search(const MatchKernel &kernel, int32_t channels, int32_t threads);

    // Keys of a frame are followed by room for their heads.
    size_t keys_bytes(int32_t cells) const {
        return most_ == 0 ? bytes_at(cells) : heads_at(cells) + rows(cells) * kernel_.head_row_bytes(most_);
    }
    size_t bytes_at(int32_t cells) const { return rows(cells) * kernel_.row_bytes(channels_); }
    size_t heads_at(int32_t cells) const { return bytes_at(cells) + rows(cells) * kernel_.byte_row_bytes; }

    bool ready() const { return !axes_.empty(); }
    int32_t head() const { return head_; }
    ByteScale scale() const { return scale_; }
    // Takes the axes of a frame's keys; the heads of all frames have to be made afterwards. Nothing if it has some, or never needs any.
    bool learn(const std::byte *keys, int32_t cells);
    // The heads of `count` cells from `from` on, in the keys that they belong to; `workspace` is the kernel's.
    void make_heads(std::byte *keys, int32_t cells, int32_t from, int32_t count, std::byte *workspace) const;

    // Between frames: whether the length of heads has changed, so that they have to be made again.
    bool adapt();
    void start_frame() { counts_.assign(counts_.size(), {}); }
    // Whether a job of the frame is to be bounded, and where it counts.
    bool bounds(int32_t job, int32_t worker) const;
    SearchCounts &counts(int32_t worker) { return counts_[worker]; }

    // Of the last frame: the share of bounded keys that were multiplied in full; 1 where nothing was bounded.
    float survivors() const;
    size_t bytes() const { return axes_.size() * sizeof(float); }

   private:
    size_t rows(int32_t cells) const { return static_cast<size_t>(cells) + kernel_.padding_rows; }
    SearchCounts total() const;
    ByteScale byte_scale(const std::vector<float> &samples);  // turns axes within their span
    struct Cost {
        double bounds, survivors;
        double total() const { return bounds + survivors; }
    };
    Cost cost(const SearchCounts &counts) const;

    const MatchKernel &kernel_;
    const int32_t channels_;
    SearchMode mode_;
    int32_t most_ = 0, head_ = 0;  // elements of a head; 0 = never bounded
    bool pays_ = true;
    int64_t frames_ = 0, changed_ = 0;
    std::vector<float> axes_;  // [most_ - 1][axis_stride]
    ByteScale scale_;
    std::vector<SearchCounts> counts_;  // per worker
};

}  // namespace vosrt
