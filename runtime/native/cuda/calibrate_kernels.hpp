// Calibration on the GPU, as CpuMemory::calibrate does it on the processor. Whether it is time is found out on the GPU itself, so that a
// recorded CUDA graph fits every frame; in the others the kernels end at once. `Thread` as in match_tile.hpp.
#pragma once

#include "../src/calibration.hpp"
#include "candidate.hpp"
#include "mask_kernels.hpp"

namespace vosrt::cuda {

struct CalibrateParams {
    NewestMasks masks;
    const ReferenceEntry *references;  // oldest first
    int32_t count;                     // of references, at least one
    const int32_t *owner;              // [256]: the reference of a channel's object
    int32_t interval, keys_channels;   // frames; elements of a key
    const uint16_t *ring_keys;         // bf16 [context + 1][cells][keys_channels]
    const float *ring_bias;            // f32 [context + 1][cells]
    float object_bias;
    int32_t *went_to;  // [references][cells]: the most similar cell of the newest frame, or -1
    float *biases;     // f32 [256], by channel

    // Frames from a reference to the newest one.
    VOSRT_BOTH int64_t age(int32_t reference) const { return *masks.now - references[reference].frame; }
    VOSRT_BOTH bool due(int32_t reference) const { return age(reference) > 0 && age(reference) % interval == 0; }
    // Whether one of the reference's objects was annotated in a cell.
    VOSRT_BOTH bool shows_object(int32_t reference, int32_t cell) const {
        for (int32_t n = 1; n < masks.count; ++n)
            if (owner[masks.channels[n]] == reference && masks.mean(references[reference].soft, cell, masks.channels[n]) > calibration::kLeastSoft)
                return true;
        return false;
    }
};

// A similarity, but for a term that all keys of a query share.
VOSRT_BOTH inline float product_of(const uint16_t *query, const uint16_t *key, int32_t channels, float bias) {
    float sum = bias;
    for (int32_t c = 0; c < channels; c += 8) {
        const Eight of_query = load_global_eight(query + c), of_key = load_global_eight(key + c);
        for (int32_t i = 0; i < 8; ++i) sum += of_query.at(i) * of_key.at(i);
    }
    return sum;
}

// Where the cells in and around a reference's objects went. A warp per cell, a job per reference.
template <class Thread>
VOSRT_KERNEL void look_back(Thread &t, const CalibrateParams &p) {
    const Grid grid = p.masks.cells();
    const int32_t reference = t.job(), cells = grid.cells(), width = grid.width;
    if (!p.due(reference)) return;
    const size_t first = static_cast<size_t>(ring_slot(*p.masks.now, p.masks.context)) * cells;
    const int32_t warps = t.threads() / 32, lane = t.thread() % 32;
    constexpr int32_t kSide = 2 * calibration::kMargin + 1;
    for (int32_t cell = t.block() * warps + t.thread() / 32; cell < cells; cell += t.blocks() * warps) {
        bool near = false;
        for (int32_t i = lane; i < kSide * kSide; i += 32) {
            const int32_t y = cell / width + i / kSide - calibration::kMargin, x = cell % width + i % kSide - calibration::kMargin;
            if (y >= 0 && y < grid.height && x >= 0 && x < width) near = near || p.shows_object(reference, y * width + x);
        }
        Packed best = 0;
        if (t.any(near)) {
            const uint16_t *query = p.references[reference].keys + static_cast<size_t>(cell) * p.keys_channels;
            for (int32_t other = lane; other < cells; other += 32) {
                const float product = product_of(query, p.ring_keys + (first + other) * p.keys_channels, p.keys_channels, p.ring_bias[first + other]);
                if (product != product) continue;
                const Packed candidate = pack(product, place_of(0, other, cells));
                best = candidate > best ? candidate : best;
            }
            for (int32_t mask = 16; mask > 0; mask /= 2) {
                const Packed theirs = t.shuffle_xor(best, mask);
                best = theirs > best ? theirs : best;
            }
        }
        if (lane == 0) p.went_to[static_cast<size_t>(reference) * cells + cell] = is_candidate(best) ? cell_of(best, cells) : -1;
    }
}

// The objects' biases. A block per object; in shared memory, what each thread has seen.
template <class Thread>
VOSRT_KERNEL void set_biases(Thread &t, const CalibrateParams &p) {
    const int32_t channel = p.masks.channels[1 + t.job()], reference = p.owner[channel], cells = p.masks.cells().cells();
    if (p.age(reference) == 0 && t.thread() == 0) p.biases[channel] = p.object_bias;
    if (!p.due(reference)) return;
    auto *each = reinterpret_cast<calibration::Evidence *>(t.shared());
    const int32_t *went_to = p.went_to + static_cast<size_t>(reference) * cells;
    const float *truth = p.references[reference].soft, *now = p.masks.values();
    calibration::Evidence evidence;
    for (int32_t cell = t.thread(); cell < cells; cell += t.threads()) {
        if (went_to[cell] >= 0) evidence.add(p.masks.mean(truth, cell, channel), p.masks.mean(now, went_to[cell], channel));
    }
    each[t.thread()] = evidence;
    t.sync();
    if (t.thread() != 0) return;
    for (int32_t i = 1; i < t.threads(); ++i) evidence.add(each[i]);
    p.biases[channel] = p.object_bias + calibration::correction(log(evidence.odds()));
}

}  // namespace vosrt::cuda
