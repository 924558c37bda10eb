// Bounded search: the lists of match_kernel.hpp from a fraction of the products.
//
// Nearly every product is computed only to learn that it is not among the k best. It need not be: let P have orthonormal rows, the
// axes that hold most of the features' energy (basis.hpp). Write q = P'g + s and k = P'h + r, where g and h are the rounded
// coordinates, the heads, and s and r are what remains. With e = Pr, the rounding error of h, and d = Ps that of g,
//     q.k = g.h + g.e + d.h + s.r <= g.h + |g||e| + |d||h| + |s||r|      (Cauchy and Schwarz, term by term)
//         <= g.h + n(q) n(k),   n(k)^2 = |r|^2 + |e|^2 / a^2 + a^2 |h|^2 + c |k|^2   (once more, over the four terms, any a)
// where c |q||k| covers what floating-point sums of K terms may be off, here and in the full product (Higham 2002, section 3.1:
// |fl(x.y) - x.y| <= K u |x||y| to first order). n is stored as one more channel of the head, so that the bound is itself a
// product, of few channels, and every path computes it with its own `scores`.
//
// Keys whose bound reaches some query's limit, its k-th best so far, survive. A head has two such bounds, of its first kFirst
// elements and of all: most keys fail at the first. Where few queries of a patch have a survivor in
// common, each of those pairs is multiplied approximately first, channels in the lanes, which settles nearly all. What is left is
// gathered and multiplied in full by the code and in the order of the unbounded search. The k best in the order of `better`
// do not depend on the order of visits, so lists are equal to the last bit, ties included.
//
// Lists fill from good limits: whatever candidates k neighbours of a query are, the k-th of their similarities bounds the final one
// from below. Those of the previous frame, a frame on, are taken: the same slots and cells.
//
// A key or query that is not finite, or so large that sums might overflow, has n = infinity and a head of zeros: bounds are then
// infinite or NaN, which survives.
#pragma once

#include "../bound.hpp"
#include "match_bytes.hpp"
#include "match_kernel.hpp"

namespace vosrt {
namespace {

template <class Ops>
struct Heads {
    using Element = typename Ops::Element;
    using Fp32 = typename Ops::Fp32;
    // Balances the rounding error of heads with their length: bf16 rounds to 2^-9 of a coordinate, fp32 does not round.
    static constexpr float kBalance = Ops::kCentred ? bound::kRoundedBf16 : 0x1p-16f;

    // [kFirst - 1 coordinates, n of these, bias of the key, |k|, other coordinates, n of all]; bias and |k| are fp32. Where a head
    // has no more than kFirst elements, there is one n. `screen` finds the bias behind the elements that it multiplies.
    static constexpr int32_t kFloat = sizeof(float) / sizeof(Element);
    static size_t row_elements(int32_t head) { return head + 2 * kFloat; }
    static constexpr int32_t element(int32_t i) { return i < Ops::kFirst ? i : i + 2 * kFloat; }
    static size_t row_bytes(int32_t head) { return row_elements(head) * sizeof(Element); }
    static float bias(const Element *head_row) { return bias_after(head_row + Ops::kFirst); }
    static float length(const Element *head_row) { return bias_after(head_row + Ops::kFirst + kFloat); }
    // The row as `screen` multiplies all of it.
    static void unfold(const Element *head_row, int32_t head, Element *out) {
        std::memcpy(out, head_row, Ops::kFirst * sizeof(Element));
        std::memcpy(out + Ops::kFirst, head_row + element(Ops::kFirst), (head - Ops::kFirst) * sizeof(Element));
        std::memcpy(out + head, head_row + Ops::kFirst, sizeof(float));
    }

    static size_t workspace_bytes(int32_t channels) {
        return (axis_stride(channels) + Fp32::kKeys) * Fp32::kLanes * sizeof(float) + Fp32::kLanes * kMost * sizeof(float);
    }
    static constexpr int32_t kMost = 128;  // elements of a head
    // Whether bounds in 8-bit integers come first.
    static constexpr bool kBytes = requires { &Ops::screen_bytes; };
    static_assert(!kBytes || Ops::kFirst >= ByteHead::kAll - 1);

    static void load(const std::byte *key, int32_t channels, float *out) {
        const auto *in = reinterpret_cast<const Element *>(key);
        for (int32_t c = 0; c < channels; ++c) out[c] = value_of(in[c]);
    }

    // Cells sit in the lanes, axes are broadcast against them as keys are in a match.
    static void make(const HeadTask &task, std::byte *workspace) {
        constexpr int32_t kLanes = Fp32::kLanes;
        const int32_t channels = task.channels, head = task.head, steps = axis_stride(channels);
        const size_t key_row = Matcher<Ops>::row_elements(channels), head_row = row_elements(head);
        auto *packed = reinterpret_cast<float *>(workspace);
        float *coordinates = packed + static_cast<size_t>(steps) * kLanes;  // [head][kLanes], in whole calls of scores
        std::memset(packed, 0, static_cast<size_t>(steps) * kLanes * sizeof(float));
        for (int32_t from = 0; from < task.cells; from += kLanes) {
            const int32_t count = smaller(kLanes, task.cells - from);
            for (int32_t lane = 0; lane < count; ++lane) {
                const Element *key = reinterpret_cast<const Element *>(task.keys) + (from + lane) * key_row;
                for (int32_t c = 0; c < channels; ++c) packed[c * kLanes + lane] = value_of(key[c]);
            }
            float squares[kLanes] = {};
            for (int32_t c = 0; c < channels; ++c)
                for (int32_t lane = 0; lane < kLanes; ++lane) squares[lane] += packed[c * kLanes + lane] * packed[c * kLanes + lane];
            for (int32_t axis = 0; axis < head - 1; axis += Fp32::kKeys)
                Fp32::scores(packed, task.axes + static_cast<size_t>(axis) * steps, steps, smaller(Fp32::kKeys, head - 1 - axis), steps,
                             coordinates + axis * kLanes);
            for (int32_t lane = 0; lane < count; ++lane) {
                const size_t cell = from + lane;
                const Element *key = reinterpret_cast<const Element *>(task.keys) + cell * key_row;
                const float bias = Ops::kCentred ? bias_after(key + Matcher<Ops>::steps(channels) * Ops::kGroup) : 0.0f;
                write(coordinates + lane, squares[lane], bias, bound::slack(channels), head,
                      reinterpret_cast<Element *>(task.heads) + cell * head_row);
                if constexpr (kBytes)
                    if (task.scale.step != 0.0f)
                        ByteHead::write(coordinates + lane, kLanes, squares[lane], bias, bound::slack(channels), task.scale,
                                        task.bytes + cell * sizeof(ByteHead));
            }
        }
    }

    // `coordinates` are kLanes apart.
    static void write(const float *coordinates, float square, float bias, float slack, int32_t head, Element *out) {
        float length = INFINITY;
        std::memset(out, 0, row_bytes(head));
        if (square <= bound::kLargest && std::fabs(bias) <= bound::kLargest) {
            float along = 0.0f, kept = 0.0f, error = 0.0f;
            for (int32_t i = 0; i < head; ++i) {
                if (i == Ops::kFirst - 1 || i == head - 1) {
                    convert_up(bound::kRaise * std::sqrt(bound::rest_square(square, along, kept, error, kBalance, slack)), out + element(i));
                    continue;
                }
                const float exact = *coordinates;
                coordinates += Fp32::kLanes;
                convert(exact, out + element(i));
                const float rounded = value_of(out[element(i)]);
                along += exact * rounded;
                kept += rounded * rounded;
                error += (exact - rounded) * (exact - rounded);
            }
            length = bound::kRaise * std::sqrt(square + 1e-28f);
            bias += slack * std::fabs(bias);
        } else {
            bias = 0.0f;
            convert_up(INFINITY, out + Ops::kFirst - 1);
            convert_up(INFINITY, out + element(head - 1));
        }
        std::memcpy(out + Ops::kFirst, &bias, sizeof bias);
        std::memcpy(out + Ops::kFirst + kFloat, &length, sizeof length);
    }

    static void convert_up(float value, float *out) { *out = value; }
    static void convert_up(float value, uint16_t *out) { *out = bound::bf16_up(value); }
};

template <class Ops>
class BoundedMatcher : Matcher<Ops> {
    using Base = Matcher<Ops>;
    using Base::key, Base::lists, Base::near_lanes, Base::patch, Base::patches_, Base::row_, Base::scores_, Base::steps_, Base::task_,
        Base::window;
    using typename Base::Element;

   public:
    static size_t workspace_bytes(int32_t channels, int32_t top_k, int32_t references, int32_t patches) {
        const size_t match = Base::workspace_bytes(channels, top_k, references, patches) + 2 * kPackedBytes * patches +
                             patches * (references + 1) * kLimitBytes + round_up(Ops::kKeys * Base::row_bytes(channels), 64) +
                             kSurvivors * sizeof(Survivor) + kSeedBytes + 2 * best_bytes(top_k) + patches * kQueryBytes;
        const size_t heads = Heads<Ops>::workspace_bytes(channels);
        return match > heads ? match : heads;
    }

    static void match(const MatchTask &task, const PatchGroup &group, std::byte *workspace, SearchCounts &counts) {
        if (task.head == 0) return Base::match(task, group, workspace);
        [[maybe_unused]] const typename Ops::State state;
        BoundedMatcher matcher(task, group.count(), workspace);
        for (int32_t i = 0; i < group.count(); ++i) {
            matcher.place(i, group.left + i % group.columns, group.top + i / group.columns);
            matcher.place_head(i);
            if (matcher.has_bytes()) matcher.place_bytes(i);
            matcher.seed(i);
        }
        matcher.visit_recent();
        for (int32_t r = 0; r < task.reference_count; ++r) matcher.visit_reference(r);
        for (int32_t i = 0; i < group.count(); ++i)
            for (int32_t r = 0; r < task.reference_count; ++r) matcher.write(i, r);
        counts += matcher.counts_;
    }

   private:
    using Queries = ByteQueries<Ops::kLanes>;
    static constexpr size_t kQueryBytes = Heads<Ops>::kBytes ? sizeof(Queries) : 0;
    static constexpr size_t kPackedBytes = Heads<Ops>::kMost * Ops::kLanes * sizeof(Element);
    static constexpr size_t kLimitBytes = round_up(Ops::kLanes * sizeof(float), 64);
    static constexpr int32_t kSurvivors = 256, kAhead = 3, kByteKeys = 64;
    static constexpr uint32_t kSeedShift = 21, kSeedTable = 1u << (32 - kSeedShift);
    static constexpr int32_t kMostSeeds = kSeedTable / 2;
    static constexpr size_t kSeedBytes = kSeedTable * sizeof(int64_t) + 2 * kMostSeeds * sizeof(int64_t);
    // Heads of a reference that stay in the second-level cache while every patch of the group visits them.
    static constexpr int32_t kBlock = 960 / Ops::kKeys * Ops::kKeys;

    BoundedMatcher(const MatchTask &task, int32_t patches, std::byte *workspace)
        : Base(task, patches, workspace),
          head_steps_(task.head / Ops::kGroup),
          head_row_(static_cast<ptrdiff_t>(Heads<Ops>::row_elements(task.head))),
          slack_(bound::slack(task.channels)),
          pair_lanes_(smaller(Ops::kPairLanes, task.channels / 32)) {
        workspace += Base::workspace_bytes(task.channels, task.top_k, task.reference_count, patches);
        packed_heads_ = workspace;
        floors_ = packed_heads_ + patches * 2 * kPackedBytes;
        byte_queries_ = floors_ + patches * (task.reference_count + 1) * kLimitBytes;
        gathered_ = byte_queries_ + patches * kQueryBytes;
        survivors_ = reinterpret_cast<Survivor *>(gathered_ + round_up(Ops::kKeys * Base::row_bytes(task.channels), 64));
        seed_table_ = reinterpret_cast<int64_t *>(survivors_ + kSurvivors);
        seeds_ = seed_table_ + kSeedTable;
        best_ = reinterpret_cast<float *>(seeds_ + 2 * kMostSeeds);
    }

    const Element *head_of(const std::byte *keys, int32_t cell) const {
        return reinterpret_cast<const Element *>(keys + task_.heads_at) + cell * head_row_;
    }
    // The heads of a patch's queries: the first elements, and all of them but for the first n, in whose place there is a zero.
    Element *packed_head(int32_t i, bool whole) {
        return reinterpret_cast<Element *>(packed_heads_ + (2 * i + whole) * kPackedBytes);
    }
    bool has_bytes() const { return Heads<Ops>::kBytes && task_.scale.step != 0.0f; }
    const std::byte *bytes_of(const std::byte *keys, int32_t cell) const {
        return keys + task_.bytes_at + static_cast<ptrdiff_t>(cell) * static_cast<ptrdiff_t>(sizeof(ByteHead));
    }
    Queries &byte_queries(int32_t i) { return *reinterpret_cast<Queries *>(byte_queries_ + i * kQueryBytes); }
    void place_bytes(int32_t i) {
        for (int32_t lane = 0; lane < Ops::kLanes; ++lane) byte_queries(i).place(lane, bytes_of(task_.query, cell_of(patch(i), lane)));
    }
    // What reference r's list of a patch ends above at least; the one after the last is for lists of recent frames.
    float *floor(int32_t i, int32_t r) {
        return reinterpret_cast<float *>(floors_ + (static_cast<size_t>(i) * (task_.reference_count + 1) + r) * kLimitBytes);
    }
    int32_t cell_of(const Patch<Ops> &p, int32_t lane) const {
        const bool inside = (p.lanes >> lane) & 1u;
        return inside ? (p.y + lane / Ops::kWidth) * task_.width + p.x + lane % Ops::kWidth : p.y * task_.width + p.x;
    }

    void place_head(int32_t i) {
        for (int32_t lane = 0; lane < Ops::kLanes; ++lane) {
            const Element *in = head_of(task_.query, cell_of(patch(i), lane));
            for (int32_t c = 0; c < task_.head; ++c) {
                const ptrdiff_t at = (static_cast<ptrdiff_t>(c / Ops::kGroup) * Ops::kLanes + lane) * Ops::kGroup + c % Ops::kGroup;
                const Element value = in[Heads<Ops>::element(c)];
                if (c < Ops::kFirst) packed_head(i, false)[at] = value;
                packed_head(i, true)[at] = c == Ops::kFirst - 1 ? Element{} : value;
            }
        }
    }

    // ---- limits from the neighbours of the previous frame ----

    // Slots as seeds name them: recent frames by how many came after, then references.
    const std::byte *slot_keys(int32_t slot) const {
        return slot < task_.context ? task_.recent[slot] : task_.references[slot - task_.context].keys;
    }

    // Multiply each neighbour that a query of the patch had with all of its queries. Recent frames belong to the contexts of later
    // references too: what they give is computed once, in best(0), from which each reference's best(1) goes on.
    void seed(int32_t i) {
        const Patch<Ops> &p = patch(i);
        for (uint32_t at = 0; at < kSeedTable; ++at) seed_table_[at] = -1;
        for (int32_t at = 0; at < task_.top_k * Ops::kLanes; ++at) best(0)[at] = -INFINITY;
        int32_t seen = 0;
        for (int32_t r = 0; r < task_.reference_count; ++r) {
            const SeedCounts found = collect_seeds(p, r, kMostSeeds - seen);
            seen += found.recent + found.reference;
            offer_seeds(p, seeds_, found.recent, best(0), true);
            const float *limits = best(0);
            if (found.reference > 0) {
                std::memcpy(best(1), best(0), best_bytes(task_.top_k));
                offer_seeds(p, seeds_ + kMostSeeds, found.reference, best(1), false);
                limits = best(1);
            }
            std::memcpy(floor(i, r), limits + (task_.top_k - 1) * Ops::kLanes, Ops::kLanes * sizeof(float));
        }
    }

    struct SeedCounts {
        int32_t recent = 0, reference = 0;
    };

    static int32_t slot_of(int64_t seed) { return static_cast<int32_t>(seed >> 32); }
    static int32_t cell_of_seed(int64_t seed) { return static_cast<int32_t>(seed & 0xffffffff); }

    // Those of reference r's lists that no list before had, each once: a set with open addressing. Best neighbours first, should there
    // be too many.
    SeedCounts collect_seeds(const Patch<Ops> &p, int32_t r, int32_t most) {
        SeedCounts found;
        const int32_t cells = task_.height * task_.width;
        const Candidate *all = task_.result + static_cast<ptrdiff_t>(r) * cells * task_.top_k;
        for (int32_t n = 0; n < task_.top_k; ++n)
            for (int32_t lane = 0; lane < Ops::kLanes; ++lane) {
                if (!((p.lanes >> lane) & 1u)) continue;
                const Candidate &old = all[static_cast<ptrdiff_t>(cell_of(p, lane)) * task_.top_k + n];
                if (old.cell < 0 || old.cell >= cells) continue;
                const int32_t age = task_.context - old.position;
                const bool recent = age >= 0 && age < task_.references[r].recent;
                const int64_t code = static_cast<int64_t>(recent ? age : task_.context + r) << 32 | old.cell;
                uint32_t at = (static_cast<uint32_t>(old.cell) + static_cast<uint32_t>(code >> 32) * 40503u) * 2654435761u >> kSeedShift;
                while (seed_table_[at] >= 0 && seed_table_[at] != code) at = (at + 1) % kSeedTable;
                if (seed_table_[at] == code) continue;
                if (found.recent + found.reference >= most) return found;
                seed_table_[at] = code;
                if (recent)
                    seeds_[found.recent++] = code;
                else
                    seeds_[kMostSeeds + found.reference++] = code;
            }
        return found;
    }

    void offer_seeds(const Patch<Ops> &p, const int64_t *seeds, int32_t count, float *best, bool windowed) {
        for (int32_t from = 0; from < count; from += Ops::kKeys) {
            const int32_t keys = smaller(Ops::kKeys, count - from);
            for (int32_t n = from + keys; n < smaller(from + keys + Ops::kKeys, count); ++n)
                fetch(key(slot_keys(slot_of(seeds[n])), cell_of_seed(seeds[n])));
            for (int32_t j = 0; j < keys; ++j) gather(j, slot_keys(slot_of(seeds[from + j])), cell_of_seed(seeds[from + j]));
            multiply_gathered(p, keys);
            for (int32_t j = 0; j < keys; ++j) {
                const uint32_t lanes = windowed ? p.lanes & near_lanes(p, cell_of_seed(seeds[from + j])) : p.lanes;
                offer_seed(best, scores_ + j * Ops::kLanes, lanes);
            }
        }
    }

    // The k best similarities of each lane, [top_k][kLanes], are all that limits need: no lists and no branches, so that lanes are
    // those of vectors.
    void offer_seed(float *best, const float *score, uint32_t lanes) {
        if ((lanes & Ops::at_least(score, best + (task_.top_k - 1) * Ops::kLanes)) == 0) return;
        float value[Ops::kLanes];
        for (int32_t lane = 0; lane < Ops::kLanes; ++lane)
            value[lane] = ((lanes >> lane) & 1u) && score[lane] >= -INFINITY ? score[lane] : -INFINITY;  // NaN is no limit
        for (int32_t n = 0; n < task_.top_k; ++n, best += Ops::kLanes)
            for (int32_t lane = 0; lane < Ops::kLanes; ++lane) {
                const float here = best[lane], other = value[lane];
                best[lane] = other > here ? other : here;
                value[lane] = other < here ? other : here;  // as compilers know a minimum
            }
    }

    static size_t best_bytes(int32_t top_k) { return static_cast<size_t>(top_k) * Ops::kLanes * sizeof(float); }
    float *best(int32_t which) { return best_ + which * task_.top_k * Ops::kLanes; }

    // ---- visits ----

    void visit_recent() {
        for (int32_t i = 0; i < patches_; ++i) lists(i, 0).clear();
        int32_t seen = 0;
        for (int32_t r = 0; r < task_.reference_count; ++r) {
            // A recent frame belongs to the contexts of reference r and of those after it.
            for (int32_t i = 0; i < patches_; ++i) lowest_floor(i, r);
            for (; seen < task_.references[r].recent; ++seen) {
                const int32_t position = task_.context - seen;
                for (int32_t i = 0; i < patches_; ++i)
                    visit_window(i, 0, floor(i, task_.reference_count), task_.recent[seen], position);
            }
            for (int32_t i = 0; i < patches_; ++i) lists(i, 1 + r).copy_from(lists(i, 0));
        }
    }

    void lowest_floor(int32_t i, int32_t from) {
        float *lowest = floor(i, task_.reference_count);
        std::memcpy(lowest, floor(i, from), Ops::kLanes * sizeof(float));
        for (int32_t r = from + 1; r < task_.reference_count; ++r)
            for (int32_t lane = 0; lane < Ops::kLanes; ++lane)
                if (floor(i, r)[lane] < lowest[lane]) lowest[lane] = floor(i, r)[lane];
    }

    void visit_reference(int32_t r) {
        const MatchReference &reference = task_.references[r];
        const int32_t cells = task_.height * task_.width;
        for (int32_t from = 0; from < cells; from += kBlock)
            for (int32_t i = 0; i < patches_; ++i) {
                begin(i, 1 + r, floor(i, r), reference.keys);
                const auto insert = [&](Lists<Ops> &list, int32_t lane, float similarity, int32_t cell) {
                    const bool near = reference.copies > 0 && (near_lanes(patch(i), cell) >> lane) & 1u;
                    list.insert_copies(lane, {similarity, 0, cell}, near ? reference.copies : 0);
                };
                const int32_t to = smaller(cells, from + kBlock);
                if (has_bytes())
                    screen_bytes(from, to, false, nullptr, insert);
                else
                    screen(from, to, [](int32_t) { return ~0u; }, insert);
                finish(insert);
            }
    }

    void visit_window(int32_t i, int32_t list, const float *floor, const std::byte *keys, int32_t position) {
        const Patch<Ops> &p = patch(i);
        begin(i, list, floor, keys);
        const auto insert = [&](Lists<Ops> &to, int32_t lane, float similarity, int32_t cell) {
            to.insert(lane, {similarity, position, cell});
        };
        Base::for_window_rows(p, [&](int32_t y, int32_t left, int32_t right) {
            const int32_t row = y * task_.width;
            if (has_bytes())
                screen_bytes(row + left, row + right, true, this->window_row(y - p.y, left - p.x), insert);
            else
                screen(row + left, row + right, [&](int32_t cell) { return window(y - p.y, cell - row - p.x); }, insert);
        });
        finish(insert);
    }

    // ---- one patch against one frame's keys ----

    void begin(int32_t i, int32_t list, const float *floor, const std::byte *keys) {
        patch_ = &patch(i);
        list_index_ = list;
        patch_index_ = i;
        keys_ = keys;
        survivor_count_ = 0;
        const float *thresholds = lists(i, list).thresholds;
        for (int32_t lane = 0; lane < Ops::kLanes; ++lane)
            limits_[lane] = thresholds[lane] > floor[lane] ? thresholds[lane] : floor[lane];
        byte_limits_of_ = -1;
    }

    // As screen, by the bounds in 8-bit integers: of short heads where few keys survive those, else of all. `attend` has the lanes that
    // attend to each key, if not all do.
    template <class Insert>
    void screen_bytes(int32_t begin, int32_t end, bool whole, const uint32_t *attend, const Insert &insert) {
        if constexpr (Heads<Ops>::kBytes) {
            counts_.screened += end - begin;
            const Queries &queries = byte_queries(patch_index_);
            for (int32_t cell = begin; cell < end; cell += kByteKeys) {
                if (survivor_count_ > kSurvivors - kByteKeys) finish(insert);
                if (byte_limits_of_ != whole) queries.set_limits(whole, limits_, task_.scale, byte_limits_);
                byte_limits_of_ = whole;
                const int32_t count = smaller(kByteKeys, end - cell);
                const int32_t before = survivor_count_;
                survivor_count_ += Ops::screen_bytes(queries.packed[whole], whole, bytes_of(keys_, cell), count, cell, byte_limits_,
                                                     patch_->lanes, attend == nullptr ? nullptr : attend + (cell - begin),
                                                     survivors_ + survivor_count_);
                for (int32_t n = before; n < survivor_count_; ++n) fetch_head(survivors_[n].cell);
            }
        }
    }

    template <class Allowed, class Insert>
    void screen(int32_t begin, int32_t end, const Allowed &allowed, const Insert &insert) {
        counts_.screened += end - begin;
        const Element *first = packed_head(patch_index_, false);
        Base::for_blocks(begin, end, [&](int32_t cell, int32_t count) {
            uint32_t hits[Ops::kKeys];
            Ops::screen(first, head_of(keys_, cell), head_row_, count, Ops::kFirst / Ops::kGroup, limits_, hits);
            for (int32_t j = 0; j < count; ++j) {
                if (hits[j] == 0) continue;
                const uint32_t lanes = hits[j] & patch_->lanes & allowed(cell + j);
                survivors_[survivor_count_] = {cell + j, lanes};
                survivor_count_ += lanes != 0;
            }
            if (survivor_count_ > kSurvivors - Ops::kKeys) finish(insert);
        });
    }

    // Multiply survivors in full, except those that a longer head or an approximate product rules out.
    template <class Insert>
    void finish(const Insert &insert) {
        if (has_bytes() || task_.head > Ops::kFirst) screen_survivors();
        byte_limits_of_ = -1;  // limits rise
        Survivor chosen[Ops::kKeys];
        int32_t count = 0;
        for (int32_t n = 0; n < smaller(kAhead, survivor_count_); ++n) fetch(key(keys_, survivors_[n].cell));
        for (int32_t n = 0; n < survivor_count_; ++n) {
            if (n + kAhead < survivor_count_) fetch(key(keys_, survivors_[n + kAhead].cell));
            Survivor survivor = survivors_[n];
            if constexpr (Ops::kPairLanes > 0)
                if (__builtin_popcount(survivor.lanes) <= pair_lanes_) survivor.lanes = still_possible(survivor);
            if (survivor.lanes == 0) continue;
            gather(count, keys_, survivor.cell);
            chosen[count++] = survivor;
            if (count < Ops::kKeys) continue;
            insert_gathered(chosen, count, insert);
            count = 0;
        }
        if (count > 0) insert_gathered(chosen, count, insert);
        survivor_count_ = 0;
    }

    // Survivors lie too far apart for hardware to foresee.
    void fetch_head(int32_t cell) const {
        const auto *row = reinterpret_cast<const char *>(head_of(keys_, cell));
        __builtin_prefetch(row);
        __builtin_prefetch(row + head_row_ * sizeof(Element) - 1);
    }
    void fetch(const Element *row) const {
        for (size_t at = 0; at < row_ * sizeof(Element); at += 64) __builtin_prefetch(reinterpret_cast<const char *>(row) + at);
    }

    // The bound of whole heads.
    void screen_survivors() {
        counts_.whole += survivor_count_;
        const Element *whole = packed_head(patch_index_, task_.head > Ops::kFirst);
        auto *rows = reinterpret_cast<Element *>(gathered_);
        int32_t kept = 0;
        Base::for_blocks(0, survivor_count_, [&](int32_t from, int32_t count) {
            for (int32_t j = 0; j < count; ++j)
                Heads<Ops>::unfold(head_of(keys_, survivors_[from + j].cell), task_.head, rows + j * head_row_);
            uint32_t hits[Ops::kKeys];
            Ops::screen(whole, rows, head_row_, count, head_steps_, limits_, hits);
            for (int32_t j = 0; j < count; ++j) {
                const uint32_t lanes = hits[j] & survivors_[from + j].lanes;
                survivors_[kept] = {survivors_[from + j].cell, lanes};
                kept += lanes != 0;
            }
        });
        survivor_count_ = kept;
    }

    template <class Insert>
    void insert_gathered(const Survivor *chosen, int32_t count, const Insert &insert) {
        multiply_gathered(*patch_, count);
        Lists<Ops> list = lists(patch_index_, list_index_);
        for (int32_t j = 0; j < count; ++j) {
            const float *score = scores_ + j * Ops::kLanes;
            for (uint32_t hits = chosen[j].lanes & Ops::at_least(score, limits_); hits; hits &= hits - 1) {
                const int32_t lane = __builtin_ctz(hits);
                insert(list, lane, score[lane], chosen[j].cell);
                if (list.thresholds[lane] > limits_[lane]) limits_[lane] = list.thresholds[lane];
            }
        }
    }

    uint32_t still_possible(const Survivor &survivor) {
        const Element *k = key(keys_, survivor.cell);
        const Element *head = head_of(keys_, survivor.cell);
        const float key_length = Heads<Ops>::length(head), bias = Heads<Ops>::bias(head);
        uint32_t lanes = survivor.lanes;
        for (uint32_t left = lanes; left; left &= left - 1) {
            const int32_t lane = __builtin_ctz(left), cell = cell_of(*patch_, lane);
            const float length = Heads<Ops>::length(head_of(task_.query, cell));
            const float most = product(key(task_.query, cell), k) + bias + slack_ * length * key_length;
            if (most < limits_[lane]) lanes &= ~(1u << lane);  // stays if it is NaN
            ++counts_.pairs;
        }
        return lanes;
    }

    // In as many partial sums as fill a few vector registers.
    float product(const Element *q, const Element *k) const {
        if constexpr (requires { &Ops::dot; }) return Ops::dot(q, k, task_.channels);
        constexpr int32_t kPartial = 32;
        float sums[kPartial] = {};
        int32_t c = 0;
        for (; c + kPartial <= task_.channels; c += kPartial)
            for (int32_t i = 0; i < kPartial; ++i) sums[i] += value_of(q[c + i]) * value_of(k[c + i]);
        for (; c < task_.channels; ++c) sums[0] += value_of(q[c]) * value_of(k[c]);
        for (int32_t half = kPartial / 2; half > 0; half /= 2)
            for (int32_t i = 0; i < half; ++i) sums[i] += sums[i + half];
        return sums[0];
    }

    void gather(int32_t at, const std::byte *keys, int32_t cell) {
        const size_t row = row_ * sizeof(Element);
        const auto *from = reinterpret_cast<const std::byte *>(key(keys, cell));
        std::byte *to = gathered_ + at * row;
        size_t done = 0;
        for (; done + 64 <= row; done += 64) std::memcpy(to + done, from + done, 64);
        std::memcpy(to + done, from + done, row - done);
    }
    void multiply_gathered(const Patch<Ops> &p, int32_t count) {
        Ops::scores(p.packed, reinterpret_cast<const Element *>(gathered_), row_, count, steps_, scores_);
        counts_.products += count;
    }

    int32_t head_steps_;
    ptrdiff_t head_row_;
    float slack_;
    int32_t pair_lanes_;  // a pair takes so long besides its product that few channels have no use for it
    std::byte *packed_heads_, *floors_, *byte_queries_, *gathered_;
    Survivor *survivors_;
    int64_t *seed_table_, *seeds_;  // seeds of recent frames, then of a reference
    float *best_;
    SearchCounts counts_;

    const Patch<Ops> *patch_ = nullptr;
    const std::byte *keys_ = nullptr;
    int32_t patch_index_ = 0, list_index_ = 0, survivor_count_ = 0;
    alignas(64) float limits_[Ops::kLanes];
    // The same for the sums of short heads, of all or, if this is -1, of neither.
    int32_t byte_limits_of_ = -1;
    alignas(64) int32_t byte_limits_[Ops::kLanes];
};

template <class Ops>
constexpr MatchKernel make_kernel(vosrt_isa isa) {
    static_assert(Ops::kLanes == Ops::kWidth * Ops::kHeight && Ops::kLanes <= 32);
    return {isa,
            Ops::kWidth,
            Ops::kHeight,
            Ops::kKeys,
            Matcher<Ops>::row_bytes,
            Matcher<Ops>::store,
            BoundedMatcher<Ops>::workspace_bytes,
            BoundedMatcher<Ops>::match,
            Ops::kFirst,
            Heads<Ops>::kBytes ? sizeof(ByteHead) : 0,
            Ops::kCompareChannels,
            Ops::kSurvivorCost,
            Heads<Ops>::row_bytes,
            Heads<Ops>::load,
            Heads<Ops>::make};
}

}  // namespace
}  // namespace vosrt
