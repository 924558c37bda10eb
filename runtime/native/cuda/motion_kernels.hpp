// Common fate on the GPU, as CpuMemory::move_together does it on the processor. `Thread` as in match_tile.hpp.
#pragma once

#include "../src/motion.hpp"
#include "frame_kernels.hpp"
#include "mask_kernels.hpp"

namespace vosrt::cuda {

struct MotionParams {
    NewestMasks masks;
    Window window;
    int32_t top_k;
    float strength;
    const Context *contexts;           // of the first reference
    const ReferenceEntry *references;  // likewise
    const Neighbour *neighbours;       // [cells][top_k], likewise
    motion::Step *steps;               // [kAges][cells]
    motion::Sums<float> *rows;         // [kAges][masks.count][cells]: sums over the row of a window

    VOSRT_BOTH int32_t cells() const { return masks.cells().cells(); }
};

// Where every cell was. A thread per cell.
template <class Thread>
VOSRT_KERNEL void find_steps(Thread &t, const MotionParams &p) {
    const int32_t cells = p.cells(), width = p.masks.cells().width;
    for (int32_t cell = t.block() * t.threads() + t.thread(); cell < cells; cell += t.blocks() * t.threads()) {
        const Neighbour *list = p.neighbours + static_cast<size_t>(cell) * p.top_k;
        motion::Step found[motion::kAges];
        float total = 0.0f;
        for (int32_t i = 0; i < p.top_k && list[i].cell >= 0; ++i) {
            const float weight = expf((list[i].similarity - list[0].similarity) / motion::kTemperature);
            total += weight;
            const int64_t age = list[i].position <= p.contexts->copies ? *p.masks.now - p.references->frame : p.masks.context + 1 - list[i].position;
            const int32_t dy = list[i].cell / width - cell / width, dx = list[i].cell % width - cell % width;
            if (!p.window.holds(dy, dx)) continue;
            VOSRT_UNROLL
            for (int32_t a = 0; a < motion::kAges; ++a)
                if (age == a + 1) found[a].add(weight, static_cast<float>(dy), static_cast<float>(dx));
        }
        VOSRT_UNROLL
        for (int32_t a = 0; a < motion::kAges; ++a) {
            if (total > 0.0f) found[a].finish(total);
            p.steps[static_cast<size_t>(a) * cells + cell] = found[a];
        }
    }
}

// Steps of a mask's cells, added up along rows. A thread per cell, a job per age and mask.
template <class Thread>
VOSRT_KERNEL void sum_rows(Thread &t, const MotionParams &p) {
    const int32_t cells = p.cells(), width = p.masks.cells().width, age = t.job() / p.masks.count;
    const int32_t channel = p.masks.channels[t.job() % p.masks.count];
    const float *soft = p.masks.values();
    const motion::Step *steps = p.steps + static_cast<size_t>(age) * cells;
    motion::Sums<float> *out = p.rows + static_cast<size_t>(t.job()) * cells;
    for (int32_t cell = t.block() * t.threads() + t.thread(); cell < cells; cell += t.blocks() * t.threads()) {
        const int32_t first = cell / width * width, x = cell - first;
        motion::Sums<float> sum;
        for (int32_t at = larger(0, x - motion::kReach); at < smaller(width, x + motion::kReach + 1); ++at)
            sum.add(steps[first + at], p.masks.mean(soft, first + at, channel));
        out[cell] = sum;
    }
}

// Sums along the columns of those along rows.
VOSRT_BOTH inline motion::Sums<float> sum_column(const MotionParams &p, int32_t age, int32_t n, int32_t cell) {
    const Grid grid = p.masks.cells();
    const int32_t cells = grid.cells(), width = grid.width, y = cell / width;
    const motion::Sums<float> *rows = p.rows + (static_cast<size_t>(age) * p.masks.count + n) * cells;
    motion::Sums<float> sum;
    for (int32_t at = larger(0, y - motion::kReach); at < smaller(grid.height, y + motion::kReach + 1); ++at)
        sum.add(rows[at * width + cell % width]);
    return sum;
}

// Masks times e^(strength * evidence), see CpuMemory::weigh_motion. A thread per cell.
template <class Thread>
VOSRT_KERNEL void weigh_motion(Thread &t, const MotionParams &p) {
    const int32_t cells = p.cells();
    for (int32_t cell = t.block() * t.threads() + t.thread(); cell < cells; cell += t.blocks() * t.threads()) {
        float weight = motion::kDoubt;
        float rest[motion::kAges];  // distances from the background's steps
        float trust[motion::kAges];
        VOSRT_UNROLL
        for (int32_t a = 0; a < motion::kAges; ++a) {
            const motion::Step step = p.steps[static_cast<size_t>(a) * cells + cell];
            const motion::Sums<float> sums = sum_column(p, a, 0, cell);
            weight += step.weight;
            rest[a] = motion::in_noise(sqrtf(sums.squared_distance(step)));
            trust[a] = step.weight * sums.support();
        }
        float *frame = p.masks.values();
        p.masks.for_each_part(frame, cell, [&](float *soft) { divide_by_largest(p.masks, soft); });
        for (int32_t n = 1; n < p.masks.count; ++n) {
            float evidence = 0.0f;
            VOSRT_UNROLL
            for (int32_t a = 0; a < motion::kAges; ++a) {
                const motion::Sums<float> sums = sum_column(p, a, n, cell);
                const float own = motion::in_noise(sqrtf(sums.squared_distance(p.steps[static_cast<size_t>(a) * cells + cell])));
                evidence += trust[a] * sums.support() * (rest[a] - own);
            }
            const float factor = expf(p.strength * evidence / weight);
            p.masks.for_each_part(frame, cell, [&](float *soft) { soft[p.masks.channels[n]] *= factor; });
        }
        p.masks.for_each_part(frame, cell, [&](float *soft) { divide_by_sum(p.masks, soft); });
    }
}

}  // namespace vosrt::cuda
