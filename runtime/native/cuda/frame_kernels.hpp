// The kernels around match, one function each: what a frame becomes, what is read out of its lists (mask_kernels.hpp: masks
// at the size of pixels).
// `Thread` as in match_tile.hpp; threads() is the number of threads of a block. Loops have strides so that any grid fits.
#pragma once

#include "../src/bound.hpp"
#include "../src/cpu/match.hpp"
#include "candidate.hpp"
#include "geometry.hpp"
#include "plan.hpp"

namespace vosrt::cuda {

using Neighbour = Candidate;  // hosts read neighbours of both libraries alike

constexpr int32_t kMaxTopK = 64;
constexpr int32_t kReadOutWarps = 4;

template <class Thread>
VOSRT_KERNEL double sum_of_warp(Thread &t, double value) {
    for (int32_t step = 16; step > 0; step /= 2) value += double_of(t.shuffle_xor(bits_of(value), step));
    return value;
}
template <class Thread>
VOSRT_KERNEL float sum_of_warp(Thread &t, float value) {
    for (int32_t step = 16; step > 0; step /= 2) value += float_of(t.shuffle_xor(bits_of(value), step));
    return value;
}

VOSRT_BOTH inline float dot(const Eight &a, const Eight &b) {
    float sum = 0.0f;
    for (int32_t i = 0; i < 8; ++i) sum += a.at(i) * b.at(i);
    return sum;
}

// ---- a new frame -----------------------------------------------------------------------------------------

// The mean of the first frame's embedding, [channels], and its square. A thread per channel.
template <class Thread>
VOSRT_KERNEL void find_mean(Thread &t, const float *embedding, int32_t cells, int32_t channels, float *mean) {
    for (int32_t c = t.block() * t.threads() + t.thread(); c < channels; c += t.blocks() * t.threads()) {
        double sum = 0.0;
        for (int32_t cell = 0; cell < cells; ++cell) sum += embedding[static_cast<size_t>(cell) * channels + c];
        const auto value = static_cast<float>(sum / cells);
        mean[c] = value - value == 0.0f ? value : 0.0f;  // finite
    }
}

struct CentreParams {
    const float *embedding;  // f32 [cells, channels]
    const float *centre;     // f32 [channels]
    int32_t cells, channels;
    float share;
    float *out;  // f32 [cells, channels]
};

// reference.centre: normalise(e - share * centre). A warp per cell.
template <class Thread>
VOSRT_KERNEL void centre_cells(Thread &t, const CentreParams &p) {
    const int32_t warps = t.threads() / 32, lane = t.thread() % 32;
    for (int32_t cell = t.block() * warps + t.thread() / 32; cell < p.cells; cell += t.blocks() * warps) {
        const float *in = p.embedding + static_cast<size_t>(cell) * p.channels;
        float *out = p.out + static_cast<size_t>(cell) * p.channels;
        double square = 0.0;
        for (int32_t c = lane; c < p.channels; c += 32) {
            const float rest = in[c] - p.share * p.centre[c];
            out[c] = rest;
            square += static_cast<double>(rest) * rest;
        }
        const auto norm = static_cast<float>(sqrt(sum_of_warp(t, square)));
        if (norm == 0.0f) continue;
        for (int32_t c = lane; c < p.channels; c += 32) out[c] /= norm;
    }
}

struct AdvanceParams {
    PlanOptions options;
    const ReferenceEntry *references;
    int64_t *now;
    Context *contexts;
    Job *jobs;
    SearchState *search;  // nullptr: every product is computed
    float head_share;     // see choose_bounded
    bool always_bounded;
};

// The next frame begins. One thread.
template <class Thread>
VOSRT_KERNEL void advance(Thread &t, const AdvanceParams &p) {
    if (t.block() != 0 || t.thread() != 0) return;
    *p.now += 1;
    make_plan(*p.now, p.references, p.options, p.contexts, p.jobs);
    if (p.search != nullptr) choose_bounded(*p.now, p.head_share, p.always_bounded, *p.search, p.jobs, p.options.max_jobs());
}

struct StoreParams {
    const float *embedding;  // f32 [cells, channels]
    const float *mean;       // f32 [channels]
    int32_t cells, channels, context;
    const int64_t *now;
    uint16_t *ring_keys;
    float *ring_bias;
};

// Keys of the newest frame: bf16 of the difference from the mean m, and m.r in fp32 beside it (src/cpu/match.hpp says why).
// A warp per cell.
template <class Thread>
VOSRT_KERNEL void store_keys(Thread &t, const StoreParams &p) {
    const int32_t warps = t.threads() / 32, lane = t.thread() % 32, padded = padded_channels(p.channels);
    const auto slot = static_cast<size_t>(ring_slot(*p.now, p.context)) * p.cells;
    for (int32_t cell = t.block() * warps + t.thread() / 32; cell < p.cells; cell += t.blocks() * warps) {
        const float *in = p.embedding + static_cast<size_t>(cell) * p.channels;
        uint16_t *out = p.ring_keys + (slot + cell) * padded;
        float bias = 0.0f;
        for (int32_t c = lane; c < padded; c += 32) {
            const float difference = c < p.channels ? in[c] - p.mean[c] : 0.0f;
            out[c] = to_bf16(difference);
            if (c < p.channels) bias += p.mean[c] * difference;
        }
        bias = sum_of_warp(t, bias);
        if (lane == 0) p.ring_bias[slot + cell] = bias;
    }
}

struct HeadParams {
    const uint16_t *keys;  // bf16 [cells, padded channels]
    const float *bias;     // [cells]
    uint16_t *heads;       // bf16 [cells, head]
    const int64_t *now;    // all of these begin at the newest frame's slot of `context` + 1; nullptr: they begin as they are
    int32_t cells, channels, context;
    const float *axes;  // f32 [padded channels][head], the last column zero, and so is what pads
    int32_t head;       // at most kMaxHead
};
constexpr int32_t kMaxHead = 64;

// Heads of keys: head - 1 coordinates along the axes and n, see src/cpu/match_bound.hpp. A warp per cell, an axis or two per thread.
template <class Thread>
VOSRT_KERNEL void make_heads(Thread &t, const HeadParams &p) {
    const int32_t warps = t.threads() / 32, lane = t.thread() % 32, padded = padded_channels(p.channels);
    const size_t slot = p.now == nullptr ? 0 : static_cast<size_t>(ring_slot(*p.now, p.context)) * p.cells;
    for (int32_t cell = t.block() * warps + t.thread() / 32; cell < p.cells; cell += t.blocks() * warps) {
        const uint16_t *key = p.keys + (slot + cell) * padded;
        uint16_t *out = p.heads + (slot + cell) * p.head;
        float exact[kMaxHead / 32] = {}, square = 0.0f, along = 0.0f, kept = 0.0f, error = 0.0f;
        for (int32_t c = 8 * lane; c < padded; c += 256) square += dot(load_global_eight(key + c), load_global_eight(key + c));
        square = sum_of_warp(t, square);
        const bool bounded = square <= bound::kLargest && fabsf(p.bias[slot + cell]) <= bound::kLargest;  // false if one is NaN
        for (int32_t c = 0; bounded && c < padded; c += 8) {
            const Eight eight = load_global_eight(key + c);
            for (int32_t n = 0; n < 8; ++n)
                for (int32_t i = 0; i < kMaxHead / 32; ++i)
                    if (32 * i < p.head) exact[i] += eight.at(n) * p.axes[(c + n) * p.head + 32 * i + lane];
        }
        for (int32_t i = 0; i < kMaxHead / 32; ++i) {
            if (32 * i >= p.head) continue;
            const uint16_t coordinate = to_bf16(exact[i]);
            const float rounded = from_bf16(coordinate);
            if (32 * i + lane < p.head - 1) out[32 * i + lane] = coordinate;
            along += exact[i] * rounded;
            kept += rounded * rounded;
            error += (exact[i] - rounded) * (exact[i] - rounded);
        }
        along = sum_of_warp(t, along), kept = sum_of_warp(t, kept), error = sum_of_warp(t, error);
        const float rest = bound::rest_square(square, along, kept, error, bound::kRoundedBf16, bound::slack(p.channels));
        if (lane == 31) out[p.head - 1] = bound::bf16_up(bounded ? bound::kRaise * sqrtf(rest) : INFINITY);
    }
}

// ---- reading out -----------------------------------------------------------------------------------------

struct ReadOutParams {
    Grid grid;
    Window window;
    int32_t context, references, top_k, channels, capacity, parts;
    int32_t jobs, lists_per_job;
    bool yield_background;
    float temperature;
    const float *mean;
    const int64_t *now;
    const Job *job;
    const Context *contexts;
    const ReferenceEntry *reference;
    const Packed *lists;
    const float *ring_bias;
    float *ring_soft;       // [context + 1][cells * parts * parts][capacity]
    const int32_t *owner;   // [capacity] reference that a channel is read from, -1 = unused; channel 0: the first
    Neighbour *neighbours;  // [references][cells][top_k]
};

// One warp's place in shared memory.
struct ReadOutScratch {
    Packed best[kMaxTopK];
    float weight[kMaxTopK];
    const float *soft[kMaxTopK];
    int32_t count;
};

// Enter a candidate into a sorted list; whether it found a place, or has one already. One thread.
VOSRT_BOTH inline bool insert_sorted(ReadOutScratch &list, int32_t top_k, Packed candidate) {
    int32_t at = list.count;
    while (at > 0 && list.best[at - 1] < candidate) --at;
    if (at > 0 && list.best[at - 1] == candidate) return true;
    if (at == top_k) return false;
    list.count = smaller(list.count + 1, top_k);
    for (int32_t i = list.count - 1; i > at; --i) list.best[i] = list.best[i - 1];
    list.best[at] = candidate;
    return true;
}

// Top-k of a query in a reference's context, of all lists that serve it. Jobs know each cell of a reference once; where copies of the
// reference stand in for missing frames, it counts once more per copy if the window holds it. Each list is read once: what does not reach
// the least of the candidates so far is dropped by all lanes together.
template <class Thread>
VOSRT_KERNEL void merge_lists(Thread &t, const ReadOutParams &p, int32_t reference, int32_t cell, ReadOutScratch &scratch) {
    const int32_t lane = t.thread() % 32, width = p.grid.width, cells = p.grid.cells();
    const int32_t entries = p.lists_per_job * p.top_k;
    const Context context = p.contexts[reference];
    if (lane == 0) scratch.count = 0;
    Packed least = 0;
    for (int32_t j = 0; j < p.jobs; ++j) {
        if (!job_serves(p.job[j], reference, context)) continue;
        for (int32_t first = 0; first < entries; first += 32) {
            const int32_t e = first + lane;
            const size_t list = static_cast<size_t>(j) * p.lists_per_job + e / p.top_k;
            const Packed mine = e < entries ? p.lists[(list * cells + cell) * p.top_k + e % p.top_k] : 0;
            for (uint32_t left = t.combine(is_candidate(mine) && mine > least ? 1u << lane : 0u); left != 0; left &= left - 1) {
                const Packed candidate = t.shuffle(mine, lowest_bit(left));
                if (candidate <= least) continue;
                if (lane == 0) {
                    const int32_t from = cell_of(candidate, cells);
                    const bool near = context.copies > 0 && position_of(candidate, cells) == 0 &&
                                      p.window.holds(from / width - cell / width, from % width - cell % width);
                    Packed copy = candidate;
                    for (int32_t n = 0; insert_sorted(scratch, p.top_k, copy) && near && n < context.copies; ++n)
                        copy = next_copy(copy, cells);
                }
                t.sync_warp();
                least = scratch.count == p.top_k ? scratch.best[p.top_k - 1] : 0;
                t.sync_warp();  // before the list changes again
            }
        }
    }
    t.sync_warp();
}

// Softmax of the kept similarities, and whose soft masks they weigh (Araslanov et al. 2021, appendix C).
template <class Thread>
VOSRT_KERNEL void weigh(Thread &t, const ReadOutParams &p, int32_t reference, int32_t cell, float common, ReadOutScratch &scratch) {
    const int32_t lane = t.thread() % 32, cells = p.grid.cells(), newest = ring_slot(*p.now, p.context);
    Neighbour *out = p.neighbours + (static_cast<size_t>(reference) * cells + cell) * p.top_k;
    for (int32_t i = lane; i < p.top_k; i += 32) {
        if (i >= scratch.count) {
            out[i] = {NAN, -1, -1};
            continue;
        }
        const Packed candidate = scratch.best[i];
        const int32_t position = position_of(candidate, cells), from = cell_of(candidate, cells);
        out[i] = {similarity_of(candidate) + common, position, from};
        const float first = similarity_of(scratch.best[0]) + common;
        scratch.weight[i] = expf((out[i].similarity - first) / p.temperature);
        const float *soft = p.reference[reference].soft;
        if (position > p.contexts[reference].copies)
            soft = p.ring_soft + static_cast<size_t>(slot_of_age(newest, p.context + 1 - position, p.context)) * cells * p.parts * p.parts * p.capacity;
        scratch.soft[i] = soft + static_cast<size_t>(first_part(from, p.grid.width, p.parts)) * p.capacity;
    }
    t.sync_warp();
}

// Soft masks of the newest frame: every reference's context gives the channels annotated there, and a part reads the same part of each
// neighbour. A warp per cell.
template <class Thread>
VOSRT_KERNEL void read_out(Thread &t, const ReadOutParams &p) {
    const int32_t warps = t.threads() / 32, lane = t.thread() % 32, cells = p.grid.cells();
    ReadOutScratch &scratch = reinterpret_cast<ReadOutScratch *>(t.shared())[t.thread() / 32];
    const auto newest = static_cast<size_t>(ring_slot(*p.now, p.context)) * cells;
    float square = 0.0f;
    for (int32_t c = lane; c < p.channels; c += 32) square += p.mean[c] * p.mean[c];
    square = sum_of_warp(t, square);
    for (int32_t cell = t.block() * warps + t.thread() / 32; cell < cells; cell += t.blocks() * warps) {
        float *of_cell = p.ring_soft + (newest * p.parts * p.parts + first_part(cell, p.grid.width, p.parts)) * p.capacity;
        const auto offset_of = [&](int32_t part) {
            return (static_cast<size_t>(part / p.parts) * p.parts * p.grid.width + part % p.parts) * p.capacity;
        };
        const float common = square + p.ring_bias[newest + cell];
        for (int32_t r = p.references - 1; r >= 0; --r) {
            merge_lists(t, p, r, cell, scratch);
            weigh(t, p, r, cell, common, scratch);
            float total = 0.0f;
            for (int32_t i = 0; i < scratch.count; ++i) total += scratch.weight[i];
            for (int32_t part = 0; part < p.parts * p.parts; ++part) {
                const size_t offset = offset_of(part);
                for (int32_t c = lane; c < p.capacity; c += 32) {
                    if (p.owner[c] != r) continue;
                    float sum = 0.0f;
                    for (int32_t i = 0; i < scratch.count; ++i) sum += scratch.weight[i] / total * scratch.soft[i][offset + c];
                    of_cell[offset + c] = sum;
                }
            }
            t.sync_warp();  // before the next reference overwrites the scratch
        }
        for (int32_t part = 0; part < p.parts * p.parts; ++part) {
            float *soft = of_cell + offset_of(part), later = 0.0f;
            for (int32_t c = lane; c < p.capacity; c += 32) {
                if (p.owner[c] < 0) soft[c] = 0.0f;
                if (p.owner[c] > 0) later += soft[c];  // which this thread has written
            }
            later = sum_of_warp(t, later);
            const float rest = 1.0f - later;
            if (lane == 0 && p.yield_background) soft[0] *= rest > 0.0f ? rest : 0.0f;
        }
    }
}

struct ValuesParams {
    int32_t cells, top_k, context, channels, slots;
    float temperature;
    const int64_t *now;
    const Context *context_of;    // of the reference that is read
    const Neighbour *neighbours;  // [cells][top_k]
    const float *reference;       // f32 [cells, channels]: values at the reference
    const float *recent;          // f32 [slots, cells, channels]: frame t in slot t mod slots
    float *out;                   // f32 [cells, channels]
};

// V_q: values weighted as soft masks are (Li et al. 2023, equation 7). A warp per cell.
template <class Thread>
VOSRT_KERNEL void read_values(Thread &t, const ValuesParams &p) {
    const int32_t warps = t.threads() / 32, lane = t.thread() % 32;
    for (int32_t cell = t.block() * warps + t.thread() / 32; cell < p.cells; cell += t.blocks() * warps) {
        const Neighbour *near = p.neighbours + static_cast<size_t>(cell) * p.top_k;
        float total = 0.0f;
        int32_t count = 0;
        for (; count < p.top_k && near[count].cell >= 0; ++count)
            total += expf((near[count].similarity - near[0].similarity) / p.temperature);
        for (int32_t c = lane; c < p.channels; c += 32) {
            float sum = 0.0f;
            for (int32_t i = 0; i < count; ++i) {
                const float *values = p.reference;
                if (near[i].position > p.context_of->copies)
                    values = p.recent + static_cast<size_t>((*p.now - (p.context + 1 - near[i].position)) % p.slots) * p.cells * p.channels;
                const float weight = expf((near[i].similarity - near[0].similarity) / p.temperature) / total;
                sum += weight * values[static_cast<size_t>(near[i].cell) * p.channels + c];
            }
            p.out[static_cast<size_t>(cell) * p.channels + c] = sum;
        }
    }
}

// ---- limits ------------------------------------------------------------------------------------------------

struct SeedParams {
    Grid grid;
    Window window;
    int32_t context, channels, top_k;  // channels: padded
    const int64_t *now;
    const Context *contexts;
    const ReferenceEntry *references;
    const uint16_t *ring_keys;
    const float *ring_bias;
    const Neighbour *neighbours;  // [references][cells][top_k] of the frame before; cell -1 = none
    float *limits;                // [references][cells]
};

// What the k-th best candidate of a query reaches at least: whatever k candidates are, the least similar of them bounds it from below.
// Those that the query and the cells beside it had in the frame before, a frame on, are taken: the same slots and cells, each once.
// Products are rounded otherwise than match does, hence the slack. A warp per cell, a job per reference.
template <class Thread>
VOSRT_KERNEL void seed_limits(Thread &t, const SeedParams &p) {
    const int32_t warps = t.threads() / 32, lane = t.thread() % 32, cells = p.grid.cells(), width = p.grid.width;
    const Context context = p.contexts[t.job()];
    const ReferenceEntry reference = p.references[t.job()];
    const int32_t newest_slot = ring_slot(*p.now, p.context);
    const auto newest = static_cast<size_t>(newest_slot) * cells;
    const float slack = bound::slack(p.channels);
    ReadOutScratch &found = reinterpret_cast<ReadOutScratch *>(t.shared())[t.thread() / 32];
    for (int32_t cell = t.block() * warps + t.thread() / 32; cell < cells; cell += t.blocks() * warps) {
        const uint16_t *query = p.ring_keys + (newest + cell) * p.channels;
        const int32_t own_y = cell / width, own_x = cell % width;
        float of_query = 0.0f;
        for (int32_t c = 8 * lane; c < p.channels; c += 256) of_query += dot(load_global_eight(query + c), load_global_eight(query + c));
        of_query = sum_of_warp(t, of_query);
        if (lane == 0) found.count = 0;
        for (int32_t beside = 0; beside < 5; ++beside) {
            const int32_t y = own_y + (beside == 1) - (beside == 2), x = own_x + (beside == 3) - (beside == 4);
            if (y < 0 || y >= p.grid.height || x < 0 || x >= width) continue;
            const Neighbour *list = p.neighbours + (static_cast<size_t>(t.job()) * cells + y * width + x) * p.top_k;
            for (int32_t i = 0; i < p.top_k; ++i) {
                const Neighbour old = list[i];
                const int32_t age = p.context + 1 - old.position;
                const bool of_reference = old.position <= context.copies;
                if (old.cell < 0 || (!of_reference && age > context.recent)) continue;
                if (old.position > 0 && !p.window.holds(old.cell / width - own_y, old.cell % width - own_x)) continue;
                const size_t row = (of_reference ? 0 : static_cast<size_t>(slot_of_age(newest_slot, age, p.context)) * cells) + old.cell;
                const uint16_t *key = (of_reference ? reference.keys : p.ring_keys) + row * p.channels;
                const float bias = (of_reference ? reference.bias : p.ring_bias)[row];
                float product = 0.0f, of_key = 0.0f;
                for (int32_t c = 8 * lane; c < p.channels; c += 256) {
                    const Eight k = load_global_eight(key + c);
                    product += dot(load_global_eight(query + c), k);
                    of_key += dot(k, k);
                }
                product = sum_of_warp(t, product), of_key = sum_of_warp(t, of_key);
                if (!(of_query <= bound::kLargest && of_key <= bound::kLargest && fabsf(bias) <= bound::kLargest)) continue;
                const float sure = product + bias - slack * (sqrtf(of_query) * sqrtf(of_key) + fabsf(bias)) - 1e-30f;
                if (lane == 0) insert_sorted(found, p.top_k, pack(sure, place_of(old.position, old.cell, cells)));
            }
        }
        if (lane == 0)
            p.limits[static_cast<size_t>(t.job()) * cells + cell] =
                found.count == p.top_k ? similarity_of(found.best[p.top_k - 1]) : -INFINITY;
    }
}

// ---- soft masks that change otherwise ------------------------------------------------------------------------

// The newest frame is all background.
template <class Thread>
VOSRT_KERNEL void clear_soft(Thread &t, const int64_t *now, int32_t context, int32_t cells, int32_t capacity, float *ring_soft) {
    const int32_t values = cells * capacity;
    float *soft = ring_soft + static_cast<size_t>(ring_slot(*now, context)) * values;
    for (int32_t i = t.block() * t.threads() + t.thread(); i < values; i += t.blocks() * t.threads())
        soft[i] = i % capacity == 0 ? 1.0f : 0.0f;
}

// An object's channel becomes background in `cells` cells.
template <class Thread>
VOSRT_KERNEL void release_channel(Thread &t, float *soft, int32_t cells, int32_t capacity, int32_t channel) {
    for (int32_t cell = t.block() * t.threads() + t.thread(); cell < cells; cell += t.blocks() * t.threads()) {
        float *at = soft + static_cast<size_t>(cell) * capacity;
        at[0] += at[channel];
        at[channel] = 0.0f;
    }
}

// ---- frames ------------------------------------------------------------------------------------------------

struct ResizeParams {
    const uint8_t *source;  // u8 [source_height, source_width, 3], rows of source_stride bytes
    int32_t source_height, source_width;
    int64_t source_stride;
    uint8_t *target;  // u8 [height, width, 3], dense
    int32_t height, width;
};

// The same bytes as vosrt_resize_bgr.
template <class Thread>
VOSRT_KERNEL void resize_pixels(Thread &t, const ResizeParams &p) {
    constexpr int32_t kOne = 1 << kWeightBits;
    const int32_t pixels = p.height * p.width;
    for (int32_t i = t.block() * t.threads() + t.thread(); i < pixels; i += t.blocks() * t.threads()) {
        const IntegerTap y = integer_tap(i / p.width, p.source_height, p.height);
        const IntegerTap x = integer_tap(i % p.width, p.source_width, p.width);
        const uint8_t *above = p.source + y.first * p.source_stride, *below = p.source + y.second * p.source_stride;
        for (int32_t c = 0; c < 3; ++c) {
            const int32_t upper = (kOne - x.weight) * above[3 * x.first + c] + x.weight * above[3 * x.second + c];
            const int32_t lower = (kOne - x.weight) * below[3 * x.first + c] + x.weight * below[3 * x.second + c];
            p.target[3 * static_cast<size_t>(i) + c] = static_cast<uint8_t>(
                ((kOne - y.weight) * upper + y.weight * lower + (1 << (2 * kWeightBits - 1))) >> (2 * kWeightBits));
        }
    }
}

struct Nv12Params {
    const uint8_t *luma;    // u8 [height, width], rows of stride bytes
    const uint8_t *chroma;  // u8 [height / 2, width / 2, 2], Cb and Cr, rows of stride bytes; halves are rounded up
    int64_t stride;
    int32_t height, width;
    float red, blue;  // weights in luma: Kr, Kb of BT.601 or BT.709
    bool full_range;  // luma 0 to 255 and not 16 to 235, chroma likewise
    uint8_t *target;  // u8 [height, width, 3], BGR, dense
};

// ITU-R BT.601-7 and BT.709-6, section 3: Y' = Kr R' + Kg G' + Kb B', Cb = (B' - Y') / (2 - 2 Kb), Cr = (R' - Y') / (2 - 2 Kr).
// Two by two pixels share their chroma. vosrt/core/reference.py defines it as nv12_to_bgr.
template <class Thread>
VOSRT_KERNEL void nv12_pixels(Thread &t, const Nv12Params &p) {
    const float luma_scale = p.full_range ? 1.0f : 255.0f / 219.0f, chroma_scale = p.full_range ? 1.0f : 255.0f / 224.0f;
    const float of_blue = 2.0f - 2.0f * p.blue, of_red = 2.0f - 2.0f * p.red, green = 1.0f - p.red - p.blue;
    const int32_t pixels = p.height * p.width;
    for (int32_t i = t.block() * t.threads() + t.thread(); i < pixels; i += t.blocks() * t.threads()) {
        const int32_t y = i / p.width, x = i % p.width;
        const uint8_t *pair = p.chroma + y / 2 * p.stride + x / 2 * 2;
        const float light = luma_scale * (static_cast<float>(p.luma[y * p.stride + x]) - (p.full_range ? 0.0f : 16.0f));
        const float cb = chroma_scale * (static_cast<float>(pair[0]) - 128.0f);
        const float cr = chroma_scale * (static_cast<float>(pair[1]) - 128.0f);
        const float colours[3] = {light + of_blue * cb,
                                  light - (p.blue * of_blue * cb + p.red * of_red * cr) / green,
                                  light + of_red * cr};
        for (int32_t c = 0; c < 3; ++c) {
            const float rounded = colours[c] + 0.5f;
            p.target[3 * static_cast<size_t>(i) + c] =
                static_cast<uint8_t>(rounded < 0.0f ? 0.0f : rounded > 255.0f ? 255.0f
                                                                              : rounded);
        }
    }
}

}  // namespace vosrt::cuda
