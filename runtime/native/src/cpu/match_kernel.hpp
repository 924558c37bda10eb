// The body of every match path; each translation unit includes it once with its own `Ops` and compiler flags.
//
// Everything is in an unnamed namespace and no standard-library template is instantiated: a function shared between
// units would be kept once, compiled for whichever instruction set the linker met first.
//
// Ops provides
//   Fp32                    Ops with fp32 elements for the same processors: itself, if its own elements are fp32
//   Element                 number format of a stored key (float, or uint16_t holding bf16)
//   kCentred                keys are differences from the mean, each followed by its fp32 bias m.r
//   kGroup                  elements of one cell that enter one product step (1; 2 for bf16 dot products)
//   kRowMultiple            stored channels are padded with zeros to a multiple of this
//   kWidth, kHeight, kLanes patch shape; kLanes = kWidth * kHeight, at most 32
//   kKeys                   keys per call of scores
//   State                   set up on entry to match (AMX tile configuration)
//   scores(query, keys, stride, count, steps, out)
//                           out[key][lane] = similarity of `count` <= kKeys keys with the packed queries, bias included
//   at_least(scores, thresholds)
//                           bit per lane: scores[lane] >= thresholds[lane]; false for NaN
//   screen(query, keys, stride, count, steps, limits, hits)
//                           hits[key] = bit per lane: not (score < limits[lane]), which is true for NaN
//   kFirst                  elements of a head that are looked at first (match_bound.hpp), a multiple of what scores steps by
//   screen_bytes(queries, whole, keys, count, cell, limits, lanes, window, survivors)
//                           heads in 8-bit integers (match_bytes.hpp) of `count` <= 64 keys, short or whole: writes those whose bound
//                           reaches some query's limit, of those in `lanes` and window[key], and returns how many; optional
//   dot(a, b, channels)     product of two keys without their biases, in any order of sums; optional
//   kCompareChannels, kSurvivorCost
//                           as MatchKernel has them
//   kPairLanes              up to so many lanes are cheaper to multiply one by one than the whole patch (match_bound.hpp)
#pragma once

#include <cmath>
#include <cstring>

#include "match.hpp"

namespace vosrt {
namespace {

constexpr int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
constexpr int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Round to nearest even; NaN stays NaN.
inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline float from_bf16(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
inline float value_of(float value) { return value; }
inline float value_of(uint16_t value) { return from_bf16(value); }
inline void convert(float value, float *out) { *out = value; }
inline void convert(float value, uint16_t *out) { *out = to_bf16(value); }

// What follows the channels of a key.
template <class Element>
float bias_after(const Element *end) {
    float bias;
    std::memcpy(&bias, end, sizeof bias);
    return bias;
}

inline bool better(const Candidate &a, const Candidate &b) {
    if (a.similarity != b.similarity) return a.similarity > b.similarity;
    if (a.position != b.position) return a.position < b.position;
    return a.cell < b.cell;
}

// The k best candidates of each lane of a patch, best first, in memory that the caller provides.
template <class Ops>
struct Lists {
    float *thresholds;  // [kLanes]: similarity of the k-th best, -inf until there are k
    int32_t *counts;    // [kLanes]
    Candidate *items;   // [kLanes][top_k]
    int32_t top_k;

    static size_t bytes(int32_t top_k) {
        return round_up(Ops::kLanes * (sizeof(float) + sizeof(int32_t) + top_k * sizeof(Candidate)), 64);
    }
    Lists(std::byte *memory, int32_t k)
        : thresholds(reinterpret_cast<float *>(memory)),
          counts(reinterpret_cast<int32_t *>(memory + Ops::kLanes * sizeof(float))),
          items(reinterpret_cast<Candidate *>(memory + Ops::kLanes * (sizeof(float) + sizeof(int32_t)))),
          top_k(k) {}

    void clear() {
        for (int32_t lane = 0; lane < Ops::kLanes; ++lane) {
            thresholds[lane] = -INFINITY;
            counts[lane] = 0;
        }
    }
    void copy_from(const Lists &other) { std::memcpy(thresholds, other.thresholds, bytes(top_k)); }

    bool insert(int32_t lane, const Candidate &candidate) {
        Candidate *list = items + static_cast<ptrdiff_t>(lane) * top_k;
        int32_t at = counts[lane];
        if (at == top_k) {
            if (!better(candidate, list[top_k - 1])) return false;
            --at;
        } else {
            ++counts[lane];
        }
        for (; at > 0 && better(candidate, list[at - 1]); --at) list[at] = list[at - 1];
        list[at] = candidate;
        if (counts[lane] == top_k) thresholds[lane] = list[top_k - 1].similarity;
        return true;
    }
    // A reference's cell and the copies of it that stand in for missing frames (positions 0 ... copies).
    void insert_copies(int32_t lane, Candidate candidate, int32_t copies) {
        while (insert(lane, candidate) && candidate.position < copies) ++candidate.position;
    }
};

template <class Ops>
struct Patch {
    int32_t x, y, columns, rows;    // the part of it inside the grid
    uint32_t lanes;                 // bit per lane inside the grid
    typename Ops::Element *packed;  // [steps][kLanes][kGroup]
};

template <class Ops>
class Matcher {
   public:
    using Element = typename Ops::Element;

    static size_t row_elements(int32_t channels) {
        // A cache line more holds the bias, and keeps rows from being a power of two apart, where they would compete for
        // the same cache sets.
        return round_up(channels, Ops::kRowMultiple) + 64 / sizeof(Element);
    }
    static size_t row_bytes(int32_t channels) { return row_elements(channels) * sizeof(Element); }
    static int32_t steps(int32_t channels) {
        return static_cast<int32_t>(round_up(channels, Ops::kRowMultiple)) / Ops::kGroup;
    }
    static size_t packed_bytes(int32_t channels) {
        return round_up(static_cast<size_t>(steps(channels)) * Ops::kLanes * Ops::kGroup * sizeof(Element), 64);
    }

    static void store(const float *embedding, int32_t cells, int32_t channels, const float *mean, std::byte *keys) {
        const size_t row = row_elements(channels);
        for (int32_t cell = 0; cell < cells; ++cell) {
            auto *out = reinterpret_cast<Element *>(keys) + cell * row;
            const float *in = embedding + static_cast<size_t>(cell) * channels;
            std::memset(out + channels, 0, (row - channels) * sizeof(Element));
            if constexpr (Ops::kCentred) {
                for (int32_t c = 0; c < channels; ++c) convert(in[c] - mean[c], out + c);
                const float bias = bias_of(in, mean, channels);
                std::memcpy(out + steps(channels) * Ops::kGroup, &bias, sizeof bias);
            } else {
                for (int32_t c = 0; c < channels; ++c) convert(in[c], out + c);
            }
        }
    }

    // m.r, in as many partial sums as a vector register has lanes.
    static float bias_of(const float *in, const float *mean, int32_t channels) {
        constexpr int32_t kPartial = 16;
        float sums[kPartial] = {};
        int32_t c = 0;
        for (; c + kPartial <= channels; c += kPartial)
            for (int32_t i = 0; i < kPartial; ++i) sums[i] += mean[c + i] * (in[c + i] - mean[c + i]);
        for (; c < channels; ++c) sums[0] += mean[c] * (in[c] - mean[c]);
        float bias = 0.0f;
        for (int32_t i = 0; i < kPartial; ++i) bias += sums[i];
        return bias;
    }

    static size_t workspace_bytes(int32_t channels, int32_t top_k, int32_t references, int32_t patches) {
        return patches * (packed_bytes(channels) + (references + 1) * Lists<Ops>::bytes(top_k)) + patches * kPatchBytes;
    }

    static void match(const MatchTask &task, const PatchGroup &group, std::byte *workspace) {
        [[maybe_unused]] const typename Ops::State state;
        Matcher matcher(task, group.count(), workspace);
        for (int32_t i = 0; i < group.count(); ++i)
            matcher.place(i, group.left + i % group.columns, group.top + i / group.columns);
        matcher.visit_recent();
        for (int32_t r = 0; r < task.reference_count; ++r) matcher.visit_everywhere(r);
        for (int32_t i = 0; i < group.count(); ++i)
            for (int32_t r = 0; r < task.reference_count; ++r) matcher.write(i, r);
    }

   protected:
    static constexpr size_t kPatchBytes = round_up(sizeof(Patch<Ops>), 64);
    // Keys of a reference that stay in the second-level cache while every patch of the run visits them.
    static constexpr size_t kBlockBytes = 128 * 1024;

    Matcher(const MatchTask &task, int32_t patches, std::byte *workspace)
        : task_(task),
          patches_(patches),
          steps_(steps(task.channels)),
          row_(static_cast<ptrdiff_t>(row_elements(task.channels))),
          patch_memory_(workspace),
          packed_memory_(patch_memory_ + patches * kPatchBytes),
          list_memory_(packed_memory_ + patches * packed_bytes(task.channels)) {}

    Patch<Ops> &patch(int32_t i) { return *reinterpret_cast<Patch<Ops> *>(patch_memory_ + i * kPatchBytes); }
    // List 0 of a patch runs over the recent frames; list 1 + r belongs to reference r.
    Lists<Ops> lists(int32_t i, int32_t list) {
        const size_t index = static_cast<size_t>(i) * (task_.reference_count + 1) + list;
        return Lists<Ops>(list_memory_ + index * Lists<Ops>::bytes(task_.top_k), task_.top_k);
    }
    const Element *key(const std::byte *keys, int32_t cell) const {
        return reinterpret_cast<const Element *>(keys) + cell * row_;
    }

    void place(int32_t i, int32_t column, int32_t row) {
        Patch<Ops> &p = patch(i);
        p.x = column * Ops::kWidth;
        p.y = row * Ops::kHeight;
        p.columns = smaller(Ops::kWidth, task_.width - p.x);
        p.rows = smaller(Ops::kHeight, task_.height - p.y);
        p.lanes = 0;
        p.packed = reinterpret_cast<Element *>(packed_memory_ + i * packed_bytes(task_.channels));
        for (int32_t lane = 0; lane < Ops::kLanes; ++lane) {
            const int32_t dx = lane % Ops::kWidth, dy = lane / Ops::kWidth;
            const bool inside = dx < p.columns && dy < p.rows;
            if (inside) p.lanes |= 1u << lane;
            // Lanes outside the grid repeat a cell inside it; their results are never read.
            const int32_t cell = (p.y + (inside ? dy : 0)) * task_.width + p.x + (inside ? dx : 0);
            const Element *in = key(task_.query, cell);
            Element *out = p.packed + static_cast<ptrdiff_t>(lane) * Ops::kGroup;
            for (int32_t step = 0; step < steps_; ++step)
                std::memcpy(out + static_cast<ptrdiff_t>(step) * Ops::kLanes * Ops::kGroup, in + step * Ops::kGroup,
                            Ops::kGroup * sizeof(Element));
        }
    }

    // Slot by slot, so that the windows of neighbouring patches find each other's keys in cache.
    void visit_recent() {
        for (int32_t i = 0; i < patches_; ++i) lists(i, 0).clear();
        int32_t seen = 0;
        for (int32_t r = 0; r < task_.reference_count; ++r) {
            for (; seen < task_.references[r].recent; ++seen) {
                const int32_t position = task_.context - seen;
                for (int32_t i = 0; i < patches_; ++i)
                    visit_window(patch(i), lists(i, 0), task_.recent[seen], position);
            }
            for (int32_t i = 0; i < patches_; ++i) lists(i, 1 + r).copy_from(lists(i, 0));
        }
    }

    // Lanes whose window holds the cell in row `dy`, column `dx` relative to the patch.
    uint32_t window(int32_t dy, int32_t dx) const {
        return *window_row(dy, dx);
    }

    // The same for the cells from there on.
    const uint32_t *window_row(int32_t dy, int32_t dx) const {
        const int32_t reach = task_.reach;
        return task_.window + static_cast<ptrdiff_t>(dy + reach) * (Ops::kWidth + 2 * reach) + dx + reach;
    }

    // Calls body(y, left, right) for every row of cells [left, right) that some query of the patch may attend to.
    template <class Body>
    void for_window_rows(const Patch<Ops> &p, const Body &body) const {
        const int32_t reach = task_.reach;
        const int32_t top = larger(0, p.y - reach), bottom = smaller(task_.height, p.y + p.rows + reach);
        for (int32_t y = top; y < bottom; ++y) {
            // The row of the patch nearest to y reaches furthest to the sides.
            const int32_t distance = larger(0, larger(p.y - y, y - (p.y + p.rows - 1)));
            const int32_t half = task_.half_width[distance];
            if (half >= 0) body(y, larger(0, p.x - half), smaller(task_.width, p.x + p.columns + half));
        }
    }

    // Match the cells around a patch.
    void visit_window(const Patch<Ops> &p, Lists<Ops> list, const std::byte *keys, int32_t position) {
        for_window_rows(p, [&](int32_t y, int32_t left, int32_t right) {
            for_blocks(left, right, [&](int32_t x, int32_t count) {
                const int32_t cell = y * task_.width + x;
                Ops::scores(p.packed, key(keys, cell), row_, count, steps_, scores_);
                for (int32_t j = 0; j < count; ++j) {
                    const float *score = scores_ + j * Ops::kLanes;
                    uint32_t hits = p.lanes & window(y - p.y, x + j - p.x) & Ops::at_least(score, list.thresholds);
                    for (; hits; hits &= hits - 1) {
                        const int32_t lane = __builtin_ctz(hits);
                        list.insert_copies(lane, {score[lane], position, cell + j}, position);
                    }
                }
            });
        });
    }

    // Match a reference everywhere; within the window a cell counts once more per copy.
    void visit_everywhere(int32_t r) {
        const MatchReference &reference = task_.references[r];
        const int32_t cells = task_.height * task_.width;
        const auto block = static_cast<int32_t>(larger(1, kBlockBytes / (row_ * sizeof(Element)) / Ops::kKeys) * Ops::kKeys);
        for (int32_t from = 0; from < cells; from += block) {
            const int32_t to = smaller(cells, from + block);
            for (int32_t i = 0; i < patches_; ++i) {
                const Patch<Ops> &p = patch(i);
                Lists<Ops> list = lists(i, 1 + r);
                for_blocks(from, to, [&](int32_t cell, int32_t count) {
                    Ops::scores(p.packed, key(reference.keys, cell), row_, count, steps_, scores_);
                    for (int32_t j = 0; j < count; ++j) {
                        const float *score = scores_ + j * Ops::kLanes;
                        uint32_t hits = p.lanes & Ops::at_least(score, list.thresholds);
                        if (hits == 0) continue;
                        const uint32_t near = reference.copies > 0 ? near_lanes(p, cell + j) : 0;
                        for (; hits; hits &= hits - 1) {
                            const int32_t lane = __builtin_ctz(hits);
                            const int32_t copies = (near >> lane) & 1u ? reference.copies : 0;
                            list.insert_copies(lane, {score[lane], 0, cell + j}, copies);
                        }
                    }
                });
            }
        }
    }

    uint32_t near_lanes(const Patch<Ops> &p, int32_t cell) const {
        const int32_t dy = cell / task_.width - p.y, dx = cell % task_.width - p.x, reach = task_.reach;
        if (dy < -reach || dy >= Ops::kHeight + reach || dx < -reach || dx >= Ops::kWidth + reach) return 0;
        return window(dy, dx);
    }

    // Split [from, to) into nearly equal runs of at most kKeys.
    template <class Body>
    static void for_blocks(int32_t from, int32_t to, const Body &body) {
        int32_t blocks = (to - from + Ops::kKeys - 1) / Ops::kKeys;
        for (; blocks > 0; --blocks) {
            const int32_t count = (to - from + blocks - 1) / blocks;
            body(from, count);
            from += count;
        }
    }

    void write(int32_t i, int32_t r) {
        const Patch<Ops> &p = patch(i);
        const Lists<Ops> list = lists(i, 1 + r);
        Candidate *result = task_.result + static_cast<ptrdiff_t>(r) * task_.height * task_.width * task_.top_k;
        for (int32_t lane = 0; lane < Ops::kLanes; ++lane) {
            if (!((p.lanes >> lane) & 1u)) continue;
            const int32_t cell = (p.y + lane / Ops::kWidth) * task_.width + p.x + lane % Ops::kWidth;
            Candidate *out = result + static_cast<ptrdiff_t>(cell) * task_.top_k;
            std::memcpy(out, list.items + static_cast<ptrdiff_t>(lane) * task_.top_k, list.counts[lane] * sizeof(Candidate));
            if constexpr (Ops::kCentred) {
                const float common = task_.mean_square + bias_after(key(task_.query, cell) + steps_ * Ops::kGroup);
                for (int32_t n = 0; n < list.counts[lane]; ++n) out[n].similarity += common;
            }
            for (int32_t n = list.counts[lane]; n < task_.top_k; ++n) out[n] = {NAN, -1, -1};
        }
    }

    const MatchTask &task_;
    int32_t patches_;
    int32_t steps_;
    ptrdiff_t row_;
    std::byte *patch_memory_, *packed_memory_, *list_memory_;
    alignas(64) float scores_[Ops::kKeys * Ops::kLanes];
};

}  // namespace
}  // namespace vosrt
