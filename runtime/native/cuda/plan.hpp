// Which blocks match what: the frame's references, and the jobs that its search is cut into.
//
// A job is a run of recent frames, searched within the window, or a range of a reference's cells, searched everywhere. Each job has its own lists of candidates, so references share the recent frames that belong to several
// of their contexts: a job never spans the oldest frame of any context. Everything is derived from the frame's number on the
// GPU itself, so that a recorded CUDA graph fits every frame.
#pragma once

#include "platform.hpp"

namespace vosrt::cuda {

enum JobKind : int32_t {
    kUnused = -1,
    kRecent = 0,
    kReference = 1
};

struct Job {
    int32_t kind;       // JobKind
    int32_t reference;  // oldest first; -1 for recent frames
    int32_t from, to;   // ages of frames (1 = the one before the newest), or cells; `to` excluded
    int32_t bounded;    // 1: searched by the kernel that bounds products first
};

// An annotated frame, oldest first in the table.
struct ReferenceEntry {
    int64_t frame;
    const uint16_t *keys;   // [cells][padded channels] bf16
    const float *bias;      // [cells]
    const float *soft;      // [cells * parts * parts][capacity]
    const uint16_t *heads;  // [cells][head] bf16, once axes are known
};

// What a reference's context is at the newest frame.
struct Context {
    int32_t recent;  // recent frames that belong to it
    int32_t copies;  // of the reference, in place of missing frames
};

struct PlanOptions {
    int32_t context, references;
    int32_t cells;
    int32_t slots_per_job;  // recent frames of a job, at most
    int32_t splits;         // jobs of a reference
    bool pad_context;

    // Blocks are launched for so many jobs, whatever the frame.
    VOSRT_BOTH int32_t max_jobs() const {
        const int32_t recent = context == 0 ? 0 : ceil_divide(context, slots_per_job) + references - 1;
        return recent + references * splits;
    }
};

VOSRT_BOTH inline int32_t ring_slot(int64_t frame, int32_t context) { return static_cast<int32_t>(frame % (context + 1)); }
// Slot of the frame of an age below `context` + 1, from the newest one's: without the 64-bit division of ring_slot.
VOSRT_BOTH inline int32_t slot_of_age(int32_t newest, int32_t age, int32_t context) {
    return newest >= age ? newest - age : newest - age + context + 1;
}
// Slot of a context at which a recent frame stands: oldest first, behind the reference and its copies.
VOSRT_BOTH inline int32_t position_of_age(int32_t age, int32_t context) { return context + 1 - age; }

// Fill in contexts [references] and jobs [max_jobs] for frame `now`.
VOSRT_BOTH inline void make_plan(int64_t now, const ReferenceEntry *references, const PlanOptions &options,
                                 Context *contexts, Job *jobs) {
    int32_t count = 0, most = 0;
    for (int32_t r = 0; r < options.references; ++r) {
        const int64_t age = now - references[r].frame;
        const int32_t recent = age < options.context ? static_cast<int32_t>(age) : options.context;
        contexts[r] = {recent, options.pad_context ? options.context - recent : 0};
        most = larger(most, recent);
    }
    for (int32_t r = 0; r < options.references; ++r) {
        const int32_t length = ceil_divide(options.cells, options.splits);
        for (int32_t part = 0; part < options.splits; ++part)
            jobs[count++] = {kReference, r, smaller(part * length, options.cells), smaller((part + 1) * length, options.cells), 0};
    }
    for (int32_t age = 1; age <= most;) {
        int32_t end = smaller(age + options.slots_per_job, most + 1);
        for (int32_t r = 0; r < options.references; ++r) {
            const int32_t boundary = contexts[r].recent + 1;
            if (boundary > age && boundary < end) end = boundary;
        }
        jobs[count++] = {kRecent, -1, age, end, 0};
        age = end;
    }
    for (; count < options.max_jobs(); ++count) jobs[count] = {kUnused, -1, 0, 0, 0};
}

// What a bounded search did in the newest frame, and whether the next one is bounded.
struct SearchState {
    uint64_t screened;  // keys whose bounds were computed, per warp
    uint64_t products;  // keys that a warp multiplied in full
    int32_t full;       // 1: every product is computed, as bounds did not pay
};

// Which jobs are bounded. One in kProbe always is, to see whether bounds pay; `head_share` is d / K, 0 where heads are not there yet.
VOSRT_BOTH inline void choose_bounded(int64_t now, float head_share, bool always, SearchState &state, Job *jobs, int32_t count) {
    constexpr int32_t kProbe = 32;
    // Keys that survive lie apart, and are loaded from the second-level cache by the warp that needs them: an estimate, not measured.
    constexpr float kApart = 2.0f;
    if (state.screened > 0) {
        const float cost = head_share + kApart * static_cast<float>(state.products) / static_cast<float>(state.screened);
        state.full = !always && cost > (state.full ? 0.7f : 0.9f);  // two limits, so that it does not change to and fro
    }
    state.screened = state.products = 0;
    if (head_share == 0.0f) return;
    for (int32_t i = 0; i < count; ++i)
        jobs[i].bounded = jobs[i].kind != kUnused && (!state.full || i % kProbe == static_cast<int32_t>(now % kProbe));
}

// Whether a job's candidates belong to a reference's context.
VOSRT_BOTH inline bool job_serves(const Job &job, int32_t reference, const Context &context) {
    return job.kind == kRecent ? job.to - 1 <= context.recent : job.kind != kUnused && job.reference == reference;
}

}  // namespace vosrt::cuda
