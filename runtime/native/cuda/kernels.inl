// Every kernel with its launch; `launch` is the including file's. A body is a struct of parameters that a thread is
// handed to.
#include <string>

#include "error.hpp"
#include "kernels.hpp"

namespace vosrt::cuda {
namespace {

struct MeanKernel {
    static constexpr int32_t kThreads = 32;
    const float *embedding;
    int32_t cells, channels;
    float *mean;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        find_mean(t, embedding, cells, channels, mean);
    }
};

struct CentreKernel {
    static constexpr int32_t kThreads = 128;
    CentreParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        centre_cells(t, params);
    }
};

struct LookBackKernel {
    static constexpr int32_t kThreads = 128;
    CalibrateParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        look_back(t, params);
    }
};

struct BiasKernel {
    static constexpr int32_t kThreads = 128;
    CalibrateParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        set_biases(t, params);
    }
};

struct SettleKernel {
    static constexpr int32_t kThreads = 128;
    SettleParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        settle_masks(t, params);
    }
};

struct AdvanceKernel {
    static constexpr int32_t kThreads = 32;
    AdvanceParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        advance(t, params);
    }
};

struct StoreKernel {
    static constexpr int32_t kThreads = 128;
    StoreParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        store_keys(t, params);
    }
};

struct HeadKernel {
    static constexpr int32_t kThreads = 128;
    HeadParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        make_heads(t, params);
    }
};

struct SeedKernel {
    static constexpr int32_t kThreads = 32 * kReadOutWarps;
    SeedParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        seed_limits(t, params);
    }
};

template <int kWarpsDown, int kPerThread>
struct MatchKernel {
    static constexpr int32_t kThreads = cuda::kThreads;
    MatchParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        MatchTile<Thread, kWarpsDown, kPerThread, false>(t, params).run();
    }
};

template <int kWarpsDown, int kPerThread>
struct BoundedMatchKernel {
    static constexpr int32_t kThreads = cuda::kThreads;
    MatchParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        MatchTile<Thread, kWarpsDown, kPerThread, true>(t, params).run();
    }
};

struct ReadOutKernel {
    static constexpr int32_t kThreads = 32 * kReadOutWarps;
    ReadOutParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        read_out(t, params);
    }
};

struct ValuesKernel {
    static constexpr int32_t kThreads = 128;
    ValuesParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        read_values(t, params);
    }
};

struct ClearKernel {
    static constexpr int32_t kThreads = 256;
    const int64_t *now;
    int32_t context, cells, capacity;
    float *ring_soft;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        clear_soft(t, now, context, cells, capacity, ring_soft);
    }
};

struct StepKernel {
    static constexpr int32_t kThreads = 128;
    MotionParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        find_steps(t, params);
    }
};

struct RowKernel {
    static constexpr int32_t kThreads = 128;
    MotionParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        sum_rows(t, params);
    }
};

struct MotionKernel {
    static constexpr int32_t kThreads = 128;
    MotionParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        weigh_motion(t, params);
    }
};

struct ReleaseKernel {
    static constexpr int32_t kThreads = 256;
    float *soft;
    int32_t cells, capacity, channel;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        release_channel(t, soft, cells, capacity, channel);
    }
};

struct DrawKernel {
    static constexpr int32_t kThreads = 256;
    NewestMasks masks;
    Planes out;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        draw_planes(t, masks, out);
    }
};

struct RefineKernel {
    static constexpr int32_t kThreads = 256;
    RefineParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        refine_pixels(t, params);
    }
};

struct KeepKernel {
    static constexpr int32_t kThreads = 256;
    NewestMasks masks;
    SoftView planes;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        keep_planes(t, masks, planes);
    }
};

struct LabelKernel {
    static constexpr int32_t kThreads = 256;
    LabelParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        label_pixels(t, params);
    }
};

struct GuideProductsKernel {
    static constexpr int32_t kThreads = 128;
    GuidedParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        sum_products(t, params);
    }
};

struct GuideInverseKernel {
    static constexpr int32_t kThreads = 128;
    GuidedParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        invert_windows(t, params);
    }
};

struct GuideMaskKernel {
    static constexpr int32_t kThreads = 128;
    GuidedParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        sum_masks(t, params);
    }
};

struct GuideFitKernel {
    static constexpr int32_t kThreads = 128;
    GuidedParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        fit_masks(t, params);
    }
};

struct GuideShowKernel {
    static constexpr int32_t kThreads = 128;
    GuidedParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        show_masks(t, params);
    }
};

struct ResizeKernel {
    static constexpr int32_t kThreads = 256;
    ResizeParams params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        resize_pixels(t, params);
    }
};

struct Nv12Kernel {
    static constexpr int32_t kThreads = 256;
    Nv12Params params;
    template <class Thread>
    VOSRT_KERNEL void operator()(Thread &t) const {
        nv12_pixels(t, params);
    }
};

// Call `body` with the variant of the match kernel, or of the bounded one, that a shape names.
template <template <int, int> class Kernel, class Body>
void with_match_kernel(const MatchShape &shape, const Body &body) {
    constexpr int kFew = MatchShape::kFew, kMany = MatchShape::kMany;
    const MatchParams none{};
    if (shape.per_thread == kMany) return body(Kernel<1, kMany>{none});
    switch (shape.warps_down) {
        case 4: return body(Kernel<4, kFew>{none});
        case 2: return body(Kernel<2, kFew>{none});
        default: return body(Kernel<1, kFew>{none});
    }
}

// With the longest head that fits. A longer one bounds better, and is no small part of a key that has few channels.
template <int kWarpsDown>
MatchShape shape_of(const Gpu &gpu, const Grid &grid, const Window &window, int32_t channels, int32_t per_thread) {
    using Sizes = Shape<kWarpsDown>;
    MatchShape shape{kWarpsDown, per_thread, Sizes::shared_bytes(channels, window, true, grid), Sizes::QueryPatch::count(grid), 0, 0};
    for (const int32_t head : {kChunk, kMaxHead}) {
        const size_t bytes = Sizes::bounded_bytes(channels, window, grid, head);
        if (static_cast<int64_t>(bytes) > gpu.shared_bytes || (head > kChunk && channels < 8 * head)) continue;
        shape.head = head, shape.bounded_bytes = bytes;
    }
    return shape;
}

}  // namespace

MatchShape choose_shape(const Gpu &gpu, const Grid &grid, const Window &window, int32_t channels, int32_t top_k) {
    const int32_t per_thread = top_k <= 4 * MatchShape::kFew ? MatchShape::kFew : MatchShape::kMany;
    const MatchShape shapes[] = {shape_of<4>(gpu, grid, window, channels, per_thread),
                                 shape_of<2>(gpu, grid, window, channels, per_thread),
                                 shape_of<1>(gpu, grid, window, channels, per_thread)};
    for (const MatchShape &shape : shapes) {
        // Registers do not hold lists of 64 beside a tile of 128 queries, and one of 64 would be more code for what no packaged bundle asks for.
        if (shape.warps_down > 1 && per_thread == MatchShape::kMany) continue;
        if (static_cast<int64_t>(shape.shared_bytes) <= gpu.shared_bytes) return shape;
    }
    throw Error(VOSRT_UNSUPPORTED, "embeddings of " + std::to_string(channels) + " channels need " +
                                       std::to_string(shapes[2].shared_bytes) + " bytes of shared memory; " + gpu.name + " has " +
                                       std::to_string(gpu.shared_bytes) + ": use a bundle with fewer channels, or device 'cpu'");
}

void prepare_match(const Gpu &gpu, const MatchShape &shape) {
    const auto allow = [&](const auto &kernel) { allow_shared(kernel, static_cast<size_t>(gpu.shared_bytes)); };
    with_match_kernel<MatchKernel>(shape, allow);
    with_match_kernel<BoundedMatchKernel>(shape, allow);
}

void launch_mean(Queue &queue, const float *embedding, int32_t cells, int32_t channels, float *mean) {
    launch(queue, MeanKernel{embedding, cells, channels, mean}, ceil_divide(channels, MeanKernel::kThreads), 1, 0);
}

void launch_centre(Queue &queue, const CentreParams &params) {
    launch(queue, CentreKernel{params}, ceil_divide(params.cells, CentreKernel::kThreads / 32), 1, 0);
}

void launch_calibrate(Queue &queue, const CalibrateParams &params) {
    const int32_t blocks = ceil_divide(params.masks.grid.cells(), LookBackKernel::kThreads / 32);
    launch(queue, LookBackKernel{params}, blocks, params.count, 0);
    const int32_t objects = params.masks.count - 1;
    if (objects > 0) launch(queue, BiasKernel{params}, 1, objects, BiasKernel::kThreads * sizeof(calibration::Evidence));
}

void launch_settle(Queue &queue, const SettleParams &params) {
    launch(queue, SettleKernel{params}, ceil_divide(params.masks.grid.cells(), SettleKernel::kThreads), 1, 0);
}

void launch_advance(Queue &queue, const AdvanceParams &params) { launch(queue, AdvanceKernel{params}, 1, 1, 0); }

void launch_store(Queue &queue, const StoreParams &params) {
    launch(queue, StoreKernel{params}, ceil_divide(params.cells, StoreKernel::kThreads / 32), 1, 0);
}

void launch_match(Queue &queue, const MatchShape &shape, const MatchParams &params, int32_t jobs) {
    const auto launch_with = [&](size_t bytes) {
        return [&, bytes](auto kernel) {
            kernel.params = params;
            launch(queue, kernel, shape.patches, jobs, bytes);
        };
    };
    with_match_kernel<MatchKernel>(shape, launch_with(shape.shared_bytes));
    if (params.ring_heads != nullptr) with_match_kernel<BoundedMatchKernel>(shape, launch_with(shape.bounded_bytes));
}

void launch_heads(Queue &queue, const HeadParams &params) {
    launch(queue, HeadKernel{params}, ceil_divide(params.cells, HeadKernel::kThreads / 32), 1, 0);
}

void launch_seeds(Queue &queue, const SeedParams &params, int32_t references) {
    launch(queue, SeedKernel{params}, ceil_divide(params.grid.cells(), kReadOutWarps), references,
           kReadOutWarps * sizeof(ReadOutScratch));
}

void launch_read_out(Queue &queue, const ReadOutParams &params) {
    launch(queue, ReadOutKernel{params}, ceil_divide(params.grid.cells(), kReadOutWarps), 1,
           kReadOutWarps * sizeof(ReadOutScratch));
}

void launch_motion(Queue &queue, const MotionParams &params) {
    const int32_t blocks = ceil_divide(params.cells(), StepKernel::kThreads);
    launch(queue, StepKernel{params}, blocks, 1, 0);
    launch(queue, RowKernel{params}, blocks, motion::kAges * params.masks.count, 0);
    launch(queue, MotionKernel{params}, blocks, 1, 0);
}

void launch_values(Queue &queue, const ValuesParams &params) {
    launch(queue, ValuesKernel{params}, ceil_divide(params.cells, ValuesKernel::kThreads / 32), 1, 0);
}

void launch_clear(Queue &queue, const int64_t *now, int32_t context, int32_t cells, int32_t capacity, float *ring_soft) {
    launch(queue, ClearKernel{now, context, cells, capacity, ring_soft}, ceil_divide(cells * capacity, ClearKernel::kThreads), 1, 0);
}

void launch_release(Queue &queue, float *soft, int32_t cells, int32_t capacity, int32_t channel) {
    launch(queue, ReleaseKernel{soft, cells, capacity, channel}, ceil_divide(cells, ReleaseKernel::kThreads), 1, 0);
}

void launch_draw(Queue &queue, const NewestMasks &masks, const Planes &out) {
    launch(queue, DrawKernel{masks, out}, ceil_divide(out.size.cells(), DrawKernel::kThreads), 1, 0);
}

void launch_refine(Queue &queue, const RefineParams &params) {
    launch(queue, RefineKernel{params}, ceil_divide(params.out.size.cells(), RefineKernel::kThreads), 1, 0);
}

void launch_keep(Queue &queue, const NewestMasks &masks, const SoftView &planes) {
    launch(queue, KeepKernel{masks, planes}, ceil_divide(masks.grid.cells(), KeepKernel::kThreads), 1, 0);
}

void launch_labels(Queue &queue, const LabelParams &params) {
    constexpr int32_t kMostBlocks = 1024;  // each adds its totals up before it writes them
    const int32_t pixels = params.size.cells(), least = ceil_divide(pixels, kMostLabelledPixels);
    const int32_t blocks = larger(least, smaller(kMostBlocks, ceil_divide(pixels, LabelKernel::kThreads)));
    launch(queue, LabelKernel{params}, blocks, 1, params.totals == nullptr ? 0 : 512 * sizeof(uint32_t));
}

void launch_guided(Queue &queue, GuidedParams params) {
    const int32_t pixels = params.size.cells();
    launch(queue, GuideProductsKernel{params}, ceil_divide(pixels, GuideProductsKernel::kThreads), 1, 0);
    launch(queue, GuideInverseKernel{params}, ceil_divide(pixels, GuideInverseKernel::kThreads), 1, 0);
    const int32_t pieces = ceil_divide(params.size.width, GuideMaskKernel::kThreads) * params.size.height;
    const size_t piece = (GuideMaskKernel::kThreads + 2 * params.radius) * sizeof(FourPlanes);
    for (params.first = 0; params.first < params.masks.count; params.first += kGuidedAtOnce) {
        const int32_t channels = smaller(kGuidedAtOnce, params.masks.count - params.first);
        launch(queue, GuideMaskKernel{params}, pieces, channels, piece);
        launch(queue, GuideFitKernel{params}, pieces, channels, piece);
        launch(queue, GuideShowKernel{params}, ceil_divide(pixels, GuideShowKernel::kThreads), channels, 0);
    }
}

void launch_resize(Queue &queue, const ResizeParams &params) {
    launch(queue, ResizeKernel{params}, ceil_divide(params.height * params.width, ResizeKernel::kThreads), 1, 0);
}

void launch_nv12(Queue &queue, const Nv12Params &params) {
    launch(queue, Nv12Kernel{params}, ceil_divide(params.height * params.width, Nv12Kernel::kThreads), 1, 0);
}

}  // namespace vosrt::cuda
