/* vosrt.h - C interface of libvosrt, the native core of vosrt.
 *
 * The core holds what a tracked video needs to remember and does everything around the neural network:
 * resizing of frames, memory of past frames, matching (fused local top-k attention), propagation of soft
 * masks, and upsampling to labels. It runs no network: the host computes an embedding per frame with the
 * engine of its choice and hands it over.
 *
 *     vosrt_memory_options options = {.struct_size = sizeof options, .height = h, .width = w, .channels = K};
 *     vosrt_memory *memory;
 *     if (vosrt_memory_create(&options, &memory) != VOSRT_OK) fail(vosrt_last_error());
 *     for each frame:
 *         embedding = my_engine(frame);                            // f32 [h, w, K], unit length per cell
 *         vosrt_memory_push(memory, embedding);
 *         if (first frame) vosrt_memory_annotate(memory, mask, H, W, W);   // u8, 0 = background, else id
 *         vosrt_memory_labels(memory, H, W, labels, confidence);
 *     vosrt_memory_destroy(memory);
 *
 * Ownership: handles belong to the caller and are freed by the matching destroy function. Arrays belong to
 * the caller, are dense and row-major unless a stride is given, and are not kept after a call returns.
 * Threads: different handles may be used from different threads at the same time; one handle may be used by
 * one thread at a time. A handle has its own worker threads. There is no global state but the text of
 * the last error, which is kept per thread.
 * Errors: every function returns a status; outputs are undefined unless it is VOSRT_OK, and a failed call
 * leaves the handle as it was. No exception leaves the library.
 */
#ifndef VOSRT_H
#define VOSRT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(VOSRT_BUILDING)
#define VOSRT_API __declspec(dllexport)
#else
#define VOSRT_API __declspec(dllimport)
#endif
#else
#define VOSRT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define VOSRT_ABI_VERSION 1u

typedef enum vosrt_status {
    VOSRT_OK = 0,
    VOSRT_INVALID_ARGUMENT = 1, /* a value the caller gave cannot be used; vosrt_last_error names it */
    VOSRT_UNSUPPORTED = 2,      /* this processor or build cannot do what was asked for */
    VOSRT_OUT_OF_MEMORY = 3,
    VOSRT_INVALID_MASK = 4,     /* an annotation marks nothing, or an object that the feature grid cannot hold */
    VOSRT_INTERNAL = 5
} vosrt_status;

/* Instruction-set paths, slowest first. The environment variable VOSRT_ISA (generic, avx2, avx512,
 * avx512bf16, amx, amx-emulated) forces one where options say VOSRT_ISA_AUTO; a path that the processor lacks is
 * refused with VOSRT_UNSUPPORTED. */
typedef enum vosrt_isa {
    VOSRT_ISA_AUTO = 0,
    VOSRT_ISA_GENERIC = 1,      /* portable C++, fp32 */
    VOSRT_ISA_AVX2 = 2,         /* AVX2 + FMA, fp32 */
    VOSRT_ISA_AVX512 = 3,       /* AVX-512 F/BW/DQ/VL, fp32 */
    VOSRT_ISA_AVX512_BF16 = 4,  /* AVX-512 BF16 dot products, fp32 accumulation */
    VOSRT_ISA_AMX = 5,          /* AMX bf16 tiles, fp32 accumulation */
    VOSRT_ISA_AMX_EMULATED = 6  /* the AMX path with its tile instructions in plain C++: for tests, slow */
} vosrt_isa;

typedef enum vosrt_precision {
    VOSRT_PRECISION_AUTO = 0, /* bf16 products where the processor has them, else fp32 */
    VOSRT_PRECISION_FP32 = 1,
    VOSRT_PRECISION_BF16 = 2 /* refused with VOSRT_UNSUPPORTED where no path has bf16 products */
} vosrt_precision;

typedef enum vosrt_window {
    VOSRT_WINDOW_CIRCLE = 0, /* sqrt(dx^2 + dy^2) < radius */
    VOSRT_WINDOW_SQUARE = 1  /* |dx| <= radius and |dy| <= radius */
} vosrt_window;

VOSRT_API uint32_t vosrt_abi_version(void);
VOSRT_API const char *vosrt_version(void);
VOSRT_API const char *vosrt_status_name(vosrt_status status);
/* Text of the last failure in the calling thread; "" if there was none. */
VOSRT_API const char *vosrt_last_error(void);
VOSRT_API const char *vosrt_isa_name(vosrt_isa isa);
/* 1 if this build and this processor can run the path, else 0. */
VOSRT_API int vosrt_isa_available(vosrt_isa isa);

/* Bilinear resize of a u8 image with 3 interleaved channels: pixel centres at half-integers, edges repeated, no
 * antialiasing, integer arithmetic, so that the result is the same on every processor. Strides are in bytes. */
VOSRT_API vosrt_status vosrt_resize_bgr(const uint8_t *source, int32_t source_height, int32_t source_width,
                                        int64_t source_stride, uint8_t *target, int32_t target_height,
                                        int32_t target_width, int64_t target_stride);

/* ---- one video's memory ---------------------------------------------------------------------------- */

typedef struct vosrt_memory vosrt_memory;

/* Zero-initialise, set struct_size, height, width and channels; zero elsewhere means the default. */
typedef struct vosrt_memory_options {
    uint32_t struct_size;
    int32_t height;          /* h, grid rows */
    int32_t width;           /* w, grid columns */
    int32_t channels;        /* K, embedding channels */
    int32_t context;         /* recent frames attended besides the reference; 0 = 20, -1 = none */
    int32_t window;          /* vosrt_window */
    float radius;            /* cells; 0 = 12 */
    int32_t top_k;           /* 0 = 10; at most 64 */
    float temperature;       /* 0 = 0.05 */
    int32_t drop_padding;    /* 1: frames before the reference are dropped, not replaced by copies of it */
    int32_t local_reference; /* 1: the reference is attended within the window only */
    int32_t keep_background; /* 1: background does not yield to objects that appear later, as in the released program */
    int32_t precision;       /* vosrt_precision */
    int32_t isa;             /* vosrt_isa; AUTO also honours VOSRT_ISA */
    int32_t threads;         /* 0 = one per processor */
} vosrt_memory_options;

typedef struct vosrt_memory_info {
    uint32_t struct_size;
    int32_t isa;             /* vosrt_isa in use */
    int32_t threads;
    int32_t objects;         /* tracked now */
    int32_t references;      /* appearance times that still have an object */
    int64_t frames;          /* pushed so far */
    int64_t bytes;           /* allocated for keys, labels and work space */
} vosrt_memory_info;

VOSRT_API vosrt_status vosrt_memory_create(const vosrt_memory_options *options, vosrt_memory **memory);
VOSRT_API void vosrt_memory_destroy(vosrt_memory *memory);
VOSRT_API vosrt_status vosrt_memory_get_info(const vosrt_memory *memory, vosrt_memory_info *info);

/* Take the next frame: `embedding` is f32 [h, w, K], each cell of unit length. Matches it against the memory,
 * reads out its soft masks and makes it the newest frame. */
VOSRT_API vosrt_status vosrt_memory_push(vosrt_memory *memory, const float *embedding);

/* Mark objects in the newest frame: `mask` is u8 [H, W] (row stride in bytes), 0 = leave as predicted, else an
 * object id. New ids start here; known ids are marked anew and take this frame as their reference. */
VOSRT_API vosrt_status vosrt_memory_annotate(vosrt_memory *memory, const uint8_t *mask, int32_t height,
                                             int32_t width, int64_t stride);

/* Forget one object; its area becomes background. */
VOSRT_API vosrt_status vosrt_memory_remove(vosrt_memory *memory, int32_t object_id);

/* Ids of the tracked objects, ascending. `ids` has room for 255. */
VOSRT_API vosrt_status vosrt_memory_object_ids(const vosrt_memory *memory, uint8_t *ids, int32_t *count);

/* Labels of the newest frame at H x W: soft masks are upsampled (bilinear, corners aligned), the largest channel
 * wins, ties go to background, then to the smallest id. `confidence` (f32 [H, W]) is the winner's value and may be NULL. */
VOSRT_API vosrt_status vosrt_memory_labels(vosrt_memory *memory, int32_t height, int32_t width, uint8_t *labels,
                                           float *confidence);

/* Soft masks of the newest frame, f32 [h, w, 1 + objects]: background, then objects by ascending id. */
VOSRT_API vosrt_status vosrt_memory_soft_masks(const vosrt_memory *memory, float *masks);
/* Replace them, e.g. by refined ones; values are finite and at least 0. References keep theirs. */
VOSRT_API vosrt_status vosrt_memory_set_soft_masks(vosrt_memory *memory, const float *masks);

/* What the newest frame attended to when it was pushed, most similar first, for each of the `references` that existed
 * then (see vosrt_memory_top_k_references): similarity f32, frame and cell i32, each [references, h*w, top_k];
 * NaN and -1 where there were fewer candidates. */
VOSRT_API vosrt_status vosrt_memory_top_k_references(const vosrt_memory *memory, int32_t *references);
VOSRT_API vosrt_status vosrt_memory_top_k(const vosrt_memory *memory, float *similarity, int32_t *frame,
                                          int32_t *cell);

#ifdef __cplusplus
}
#endif
#endif /* VOSRT_H */
