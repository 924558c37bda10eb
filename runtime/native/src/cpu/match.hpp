// Match: for every cell of the newest frame (the query), the most similar cells of the memory.
//
// One task covers one frame. Queries are processed in patches of a few rows and columns whose cells sit in the lanes
// of vector registers; memory cells (the keys) are broadcast against them, so a key loaded once serves a whole patch and
// no affinity is ever stored. Each query keeps its k best candidates in a sorted list; a key enters the slow
// path only when some lane of it reaches that lane's k-th best.
//
// Paths in bf16 store each cell's difference r from a mean m that is fixed for the video. With q = m + rq and k = m + rk,
//     q.k = m.m + m.rq + m.rk + rq.rk
// of which only rq.rk is rounded; m.rk is kept in fp32 beside the key, and the rest is the same for every key. The error is
// then 2^-7 |rq| |rk| instead of 2^-7, which matters where features share a large common part.
//
// Several references (appearance times) share the work on recent frames: recent frames are visited newest first, and a
// reference that is `recent` frames old branches off after that many.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vosrt.h"

namespace vosrt {

struct Candidate {
    float similarity;
    int32_t position;  // slot in the context: 0 = reference, then its copies, then recent frames, oldest first
    int32_t cell;      // row-major in the grid
};

struct MatchReference {
    const std::byte *keys;
    int32_t recent;  // how many recent frames, from the newest, belong to this reference's context
    int32_t copies;  // how many windowed copies of the reference stand in for missing frames
};

// What a bounded search did (match_bound.hpp). A product is that of one key with one patch of queries.
struct SearchCounts {
    int64_t screened = 0;  // keys whose bound was computed, per patch
    int64_t whole = 0;     // of these, keys that needed the bound of a whole head
    int64_t pairs = 0;     // single queries and keys whose similarity was computed approximately
    int64_t products = 0;  // keys that were multiplied in full, per patch

    SearchCounts &operator+=(const SearchCounts &other) {
        screened += other.screened;
        whole += other.whole;
        pairs += other.pairs;
        products += other.products;
        return *this;
    }
};

// How heads are rounded to 8-bit integers (match_bytes.hpp); a step of 0 = they are not.
struct ByteScale {
    float step = 0.0f;     // of a coordinate
    float balance = 0.0f;  // of rounding errors with the length of heads
    float most = 0.0f;     // what is left of a key is no more than that, but for those that are never screened
};

struct MatchTask {
    int32_t height, width;             // grid
    int32_t channels;                  // K
    const std::byte *query;            // keys of the newest frame, as MatchKernel::store left them
    const std::byte *const *recent;    // [context] keys, newest first; as many as some reference needs
    int32_t context;                   // windowed slots in a full context
    const MatchReference *references;  // [reference_count], `recent` ascending
    int32_t reference_count;
    int32_t reach;              // of the window, in rows and columns
    const int32_t *half_width;  // [reach + 1]: columns attended to either side, by row distance
    const uint32_t *window;     // [patch_height + 2 reach][patch_width + 2 reach] lanes that attend a cell
    int32_t top_k;
    float mean_square;    // m.m
    int32_t head = 0;     // elements of a head (match_bound.hpp); 0 = every product is computed
    size_t heads_at = 0;  // bytes from the keys of a frame to its heads
    size_t bytes_at = 0;  // and to its heads as 8-bit integers
    ByteScale scale{};
    // [reference_count][height * width][top_k], best first; cell -1 = none. A bounded search reads what the previous frame left
    // in it as a guess at what to look at first; any content will do.
    Candidate *result;
};

// Elements from one axis to the next: padded with zeros to a multiple of what every path steps by.
constexpr int32_t axis_stride(int32_t channels) { return (channels + 31) / 32 * 32; }

// A rectangle of patches, counted in patches.
struct PatchGroup {
    int32_t left, top, columns, rows;
    int32_t count() const { return columns * rows; }
};

// The heads of some keys, to be made.
struct HeadTask {
    const std::byte *keys;
    int32_t cells, channels;
    const float *axes;  // f32 [head - 1][axis_stride(channels)], orthonormal or zero
    int32_t head;
    std::byte *heads;
    std::byte *bytes;  // as 8-bit integers, if scale.step is not 0
    ByteScale scale;
};

// What one instruction-set path offers. Keys are rows of `row_bytes`, one per cell, in the path's own number format.
struct MatchKernel {
    vosrt_isa isa;
    int32_t patch_width, patch_height;
    int32_t padding_rows;  // readable rows that must follow the last key
    size_t (*row_bytes)(int32_t channels);
    // Convert the embedding f32 [cells, channels] to keys; `mean` is f32 [channels].
    void (*store)(const float *embedding, int32_t cells, int32_t channels, const float *mean, std::byte *keys);
    // Match a group of patches; `workspace` has workspace_bytes and is 64-byte aligned. Patches of a group share what
    // they load of each slot, so a group should be compact.
    size_t (*workspace_bytes)(int32_t channels, int32_t top_k, int32_t references, int32_t patches);
    void (*match)(const MatchTask &task, const PatchGroup &group, std::byte *workspace, SearchCounts &counts);
    // Heads of keys, for a bounded search: rows of `head_row_bytes`, whose `head` is a multiple of `head_multiple`; and of
    // `byte_row_bytes`, 0 where the path does not screen with integers first.
    int32_t head_multiple;
    size_t byte_row_bytes;
    // What products cost, for Search to weigh bounds by: a key's comparison with a patch takes as long as so many channels of its
    // product, and a survivor so many times as long as a key of the search that computes every product, as it lies anywhere.
    float compare_channels, survivor_cost;
    size_t (*head_row_bytes)(int32_t head);
    // The channels of a key as fp32, as they take part in products.
    void (*load)(const std::byte *key, int32_t channels, float *out);
    void (*make_heads)(const HeadTask &task, std::byte *workspace);  // `workspace` as for match
};

// The kernel of a path, or nullptr where the build lacks it.
const MatchKernel *match_kernel(vosrt_isa isa);

// One definition per translation unit.
extern const MatchKernel kMatchGeneric, kMatchAvx2, kMatchAvx512, kMatchAvx512Bf16, kMatchAmx, kMatchAmxEmulated, kMatchNeon;

}  // namespace vosrt
