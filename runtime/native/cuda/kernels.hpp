// Launching the kernels. kernels.cu compiles kernels.inl for GPUs, emulated/kernels_emulated.cpp for the processor.
#pragma once

#include "calibrate_kernels.hpp"
#include "device.hpp"
#include "frame_kernels.hpp"
#include "guided_kernels.hpp"
#include "mask_kernels.hpp"
#include "match_tile.hpp"
#include "motion_kernels.hpp"

namespace vosrt::cuda {

// Which variant of the match kernel fits a GPU: queries in shared memory are what takes room.
struct MatchShape {
    static constexpr int32_t kFew = 5, kMany = 16;

    int32_t warps_down;  // 4, 2 or 1: x 32 queries
    int32_t per_thread;  // kFew or kMany: x 4 candidates, at least top_k
    size_t shared_bytes;
    int32_t patches;
    int32_t head;          // channels of a head, 0 where the bounded kernel does not fit beside the other one
    size_t bounded_bytes;  // of shared memory

    int32_t lists_per_job() const { return kWarps / warps_down; }
};

// Throws Error where the channels do not fit any.
MatchShape choose_shape(const Gpu &gpu, const Grid &grid, const Window &window, int32_t channels, int32_t top_k);
// Before launch_match: allows the kernel all the shared memory that the GPU has. The limit is the function's, so that a smaller one, of
// this memory's own size, would stop the launches of another memory that needs more.
void prepare_match(const Gpu &gpu, const MatchShape &shape);

void launch_mean(Queue &queue, const float *embedding, int32_t cells, int32_t channels, float *mean);
void launch_centre(Queue &queue, const CentreParams &params);
// Before launch_settle, which reads the biases.
void launch_calibrate(Queue &queue, const CalibrateParams &params);
void launch_settle(Queue &queue, const SettleParams &params);
void launch_advance(Queue &queue, const AdvanceParams &params);
void launch_store(Queue &queue, const StoreParams &params);
// Each job is done by one of two kernels, see Job::bounded.
void launch_match(Queue &queue, const MatchShape &shape, const MatchParams &params, int32_t jobs);
void launch_heads(Queue &queue, const HeadParams &params);
void launch_seeds(Queue &queue, const SeedParams &params, int32_t references);
void launch_read_out(Queue &queue, const ReadOutParams &params);
// After launch_read_out, whose masks it changes.
void launch_motion(Queue &queue, const MotionParams &params);
void launch_values(Queue &queue, const ValuesParams &params);
void launch_clear(Queue &queue, const int64_t *now, int32_t context, int32_t cells, int32_t capacity, float *ring_soft);
void launch_release(Queue &queue, float *soft, int32_t cells, int32_t capacity, int32_t channel);
void launch_draw(Queue &queue, const NewestMasks &masks, const Planes &out);
void launch_refine(Queue &queue, const RefineParams &params);
void launch_keep(Queue &queue, const NewestMasks &masks, const SoftView &planes);
void launch_labels(Queue &queue, const LabelParams &params);
// Masks of all channels of params.masks, from the guide's pixels; `first` is not read.
void launch_guided(Queue &queue, GuidedParams params);
void launch_resize(Queue &queue, const ResizeParams &params);
void launch_nv12(Queue &queue, const Nv12Params &params);

}  // namespace vosrt::cuda
