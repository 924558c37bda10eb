/* vosrt.h - C interface of libvosrt, the native core of vosrt.
 *
 * vosrt follows objects that were marked in one frame through a video. This library holds what a tracked video needs to
 * remember and does everything around the neural network: reading of bundles, pixel formats and resizing, memory of
 * past frames, matching (fused local top-k attention), propagation of soft masks, and upsampling to labels. It runs no
 * network: an *engine*, a small table of callbacks, does. Write one around what your program already uses, or take
 * a ready one from C++ (vosrt_openvino.hpp).
 *
 *     vosrt_bundle *bundle;  vosrt_model *model;  vosrt_stream *stream;
 *     vosrt_engine engine = {.struct_size = sizeof engine};
 *     vosrt_model_options options = {.struct_size = sizeof options};
 *     if (vosrt_bundle_open("bundle", &bundle)) fail(vosrt_last_error());
 *     vosrt_bundle_model_options(bundle, &options);
 *     engine.encode = my_network;                                    // writes task->embedding; see vosrt_engine
 *     vosrt_model_create(&options, &engine, &model);                 // one network, many videos
 *     vosrt_bundle_close(bundle);
 *
 *     vosrt_stream_create(model, NULL, &stream);                     // one video
 *     vosrt_image frame = {.struct_size = sizeof frame, .format = VOSRT_FORMAT_BGR, ...}, mask = ...;
 *     vosrt_result result = {.struct_size = sizeof result};
 *     vosrt_stream_step(stream, &frame, &mask, &result);             // frame with objects marked: 0 = nothing, else an id
 *     while (next(&frame))
 *         if (!vosrt_stream_step(stream, &frame, NULL, &result)) use(result.labels);
 *     vosrt_stream_destroy(stream);  vosrt_model_destroy(model);
 *
 * Under the stream lies `vosrt_memory`, for programs that compute embeddings in their own way.
 *
 * Structs: zero-initialise, then set struct_size to sizeof the struct. It tells the library which version of the struct
 * the caller was compiled with: fields are only ever added at the end, and zero always means "as before".
 * Ownership: handles belong to the caller and are freed by the matching destroy function, which takes NULL too. A stream
 * keeps its model alive, so they may be destroyed in any order; the engine is destroyed with the last of them. Arrays
 * and images belong to the caller, are only read, and are not kept after a call returns. What a result or a description
 * points to belongs to the library; each says how long it stays.
 * Threads: a model may be used by any number of threads at once, other handles by one thread at a time, different
 * handles at the same time. A stream has worker threads of its own and runs its engine in the thread that calls it. There
 * is no global state but the text of the last error, which is kept per thread.
 * Errors: functions that can fail return a status, 0 if all went well. Outputs are undefined unless it is VOSRT_OK, and a
 * failed call leaves the handle as it was (vosrt_stream_step states its one exception). No C++ exception leaves
 * the library, and none may enter it from a host's engine.
 * Memory: a stream allocates at its first frame, when objects are added, and not again.
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
    VOSRT_INTERNAL = 5,
    VOSRT_ENGINE_FAILED = 6,    /* the engine did; vosrt_last_error has its words */
    VOSRT_INVALID_BUNDLE = 7,   /* missing, altered, unsafe, malformed or made by a newer vosrt */
    VOSRT_INVALID_SESSION = 8,  /* damaged, truncated, made by a newer vosrt or for another network */
    VOSRT_BUFFER_TOO_SMALL = 9  /* the size that is needed was stored */
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
    VOSRT_ISA_AMX_EMULATED = 6, /* the AMX path with its tile instructions in plain C++: for tests, slow */
    VOSRT_ISA_CUDA = 7          /* libvosrt_cuda: tensor cores, bf16 products, fp32 accumulation; see vosrt_cuda.h */
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
/* Set that text, at most 500 characters of it: for engines, before they return a failure. */
VOSRT_API void vosrt_set_last_error(const char *text);
/* This build as JSON: version, ABI, compiler, instruction-set paths and which of them run here. Static. */
VOSRT_API const char *vosrt_describe(void);
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
    int32_t device;          /* libvosrt_cuda: number of the GPU; 0 in libvosrt */
    int32_t half_pixel;      /* 1: every cell lies on the middle of its share of the frame's pixels, where the networks that are
                                trained here look; 0: the corner cells on the corner pixels (aligned corners, as published) */
} vosrt_memory_options;

typedef struct vosrt_memory_info {
    uint32_t struct_size;
    int32_t isa;             /* vosrt_isa in use */
    int32_t threads;
    int32_t objects;         /* tracked now */
    int32_t references;      /* appearance times that still have an object */
    int32_t half_pixel;      /* see vosrt_memory_options; was reserved */
    int64_t frames;          /* pushed so far */
    int64_t bytes;           /* allocated for keys, labels and work space */
    int32_t height, width;   /* grid */
    int32_t channels;
    int32_t top_k;
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

/* Labels of the newest frame at H x W: soft masks are upsampled (bilinear, see half_pixel), the largest channel
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

/* ---- mask embeddings: values of objects --------------------------------------------------------------- */

/* What is read of objects that were marked in the same frame, and so have the same neighbours: those of that reference in
 * vosrt_memory_top_k, with the slot where the caller keeps a frame in place of its number. */
typedef struct vosrt_values_task {
    uint32_t struct_size;
    int32_t threads;            /* that share the work, started for this call; 0 = one per processor */
    int32_t queries;            /* cells that read */
    int32_t top_k;              /* neighbours of each, at most 64 */
    int32_t objects;            /* at most 255 */
    int32_t slots, cells;       /* frames whose values are kept, and cells of each */
    int32_t channels;           /* V */
    float temperature;          /* 0 = 0.05 */
    int32_t reserved;
    const float *similarity;    /* f32 [queries, top_k]; not read where a slot is -1 */
    const int32_t *slot;        /* i32 [queries, top_k]; -1 where there is no neighbour, which may be anywhere in a row */
    const int32_t *cell;        /* i32 [queries, top_k]; not read where a slot is -1 */
    const float *const *values; /* [objects], each f32 [slots, cells, channels] */
    float *out;                 /* out: f32 [objects, queries, channels]; zeros where a query has no neighbours */
} vosrt_values_task;

/* V_q: the sum of the neighbours' values, weighted by a softmax of similarity / temperature (Li et al. 2023, equation 7).
 * The weights are computed once for all objects, and slots and cells are checked before anything is written. */
VOSRT_API vosrt_status vosrt_read_values(const vosrt_values_task *task);

/* ---- sessions: a memory as bytes -------------------------------------------------------------------- */

/* What a session holds besides the memory. All of it may be zero. */
typedef struct vosrt_session {
    uint32_t struct_size;
    int32_t frame_height, frame_width; /* pixels */
    int32_t reserved;
    const uint8_t *annotation;         /* what was marked in the newest frame, u8 [frame_height, frame_width], or NULL */
    uint8_t model[32];                 /* which network computed the embeddings: SHA-256 of its encoder graph */
} vosrt_session;

typedef struct vosrt_load_options {
    uint32_t struct_size;
    int32_t precision; /* vosrt_precision; AUTO = that of the session */
    int32_t isa;       /* vosrt_isa; AUTO = VOSRT_ISA, else the session's, else the fastest with its number format */
    int32_t threads;   /* 0 = one per processor */
} vosrt_load_options;

/* Write the memory to `buffer`. `size` receives the bytes needed; if `capacity` is smaller, nothing is written and the
 * status is VOSRT_BUFFER_TOO_SMALL (buffer may then be NULL). A loaded session continues bit for bit on the same instruction-set
 * path, in any process and any language; on another path of the same number format, up to rounding. What the newest frame
 * attended to (vosrt_memory_top_k) is not kept. */
VOSRT_API vosrt_status vosrt_memory_save(const vosrt_memory *memory, const vosrt_session *session, uint8_t *buffer,
                                         size_t capacity, size_t *size);
/* Create a memory from a session. Data are not trusted: they are checked before anything is allocated for them. `options`
 * and `session` may be NULL; session->annotation points into `data`. */
VOSRT_API vosrt_status vosrt_memory_load(const uint8_t *data, size_t size, const vosrt_load_options *options,
                                         vosrt_memory **memory, vosrt_session *session);

/* ---- bundles: a network with its settings, as a directory ---------------------------------------------- */

typedef struct vosrt_bundle vosrt_bundle;

typedef struct vosrt_bundle_info {
    uint32_t struct_size;
    int32_t trained;           /* 0: random weights */
    const char *name;          /* this and all other text: UTF-8, valid until the bundle is closed */
    const char *summary;
    const char *feature;       /* layer of the network that the embedding comes from */
    const char *input_name;    /* tensor u8 [n, height, width, 3], BGR */
    const char *output_name;   /* tensor f32 [n, h, w, K] */
    const char *path;          /* of the directory, as given */
} vosrt_bundle_info;

/* Read the directory `path` (UTF-8), check its manifest, its files' sizes and their SHA-256. Refuses what Python refuses. */
VOSRT_API vosrt_status vosrt_bundle_open(const char *path, vosrt_bundle **bundle);
VOSRT_API void vosrt_bundle_close(vosrt_bundle *bundle);
VOSRT_API vosrt_status vosrt_bundle_get_info(const vosrt_bundle *bundle, vosrt_bundle_info *info);
/* Path of the ONNX file of a graph, e.g. "encoder"; valid until the bundle is closed. */
VOSRT_API vosrt_status vosrt_bundle_graph_path(const vosrt_bundle *bundle, const char *graph, const char **path);

/* ---- engines and models ---------------------------------------------------------------------------- */

/* One frame to embed. */
typedef struct vosrt_encode_task {
    uint32_t struct_size;
    int32_t height, width;           /* of the working frame, pixels */
    int32_t grid_height, grid_width; /* h, w */
    int32_t channels;                /* K */
    const uint8_t *bgr;              /* u8 [height, width, 3], dense */
    float *embedding;                /* out: f32 [h, w, K], dense, each cell of unit length; 64-byte aligned */
} vosrt_encode_task;

typedef enum vosrt_engine_flags {
    VOSRT_ENGINE_SERIAL = 1 /* encode must not run in several threads at once: the model sees to it */
} vosrt_engine_flags;

/* What runs the network. The model copies the table. */
typedef struct vosrt_engine {
    uint32_t struct_size;
    uint32_t flags;   /* vosrt_engine_flags */
    const char *name; /* for descriptions; copied; NULL = "host" */
    void *user;       /* handed to the callbacks */
    /* VOSRT_OK, or any other value after vosrt_set_last_error. Called from every thread that steps a stream. */
    vosrt_status (*encode)(void *user, const vosrt_encode_task *task);
    void (*destroy)(void *user); /* called once, after the last encode; may be NULL */
} vosrt_engine;

typedef struct vosrt_model vosrt_model;

typedef struct vosrt_model_options {
    uint32_t struct_size;
    int32_t channels;                   /* K */
    int32_t stride;                     /* pixels of the working frame per grid cell; 0 = 8 */
    int32_t min_side, max_side;         /* of a working frame, pixels; 0 = 16, 4096 */
    int32_t size;                       /* short side of the working frame; larger frames are shrunk to it; 0 = no limit */
    const vosrt_memory_options *memory; /* defaults of streams; height, width and channels are not read; NULL = all default.
                                         * half_pixel is that of all streams, and makes working frames whole numbers of cells */
    const char *name;                   /* for descriptions; copied; NULL = "" */
    uint8_t graph_sha256[32];           /* of the encoder, so that sessions are not mixed up; all zero = unknown */
} vosrt_model_options;

/* Fill in what the bundle says; name and memory point into it. Amend what you like, then create the model. */
VOSRT_API vosrt_status vosrt_bundle_model_options(const vosrt_bundle *bundle, vosrt_model_options *options);
/* The engine belongs to the model if this succeeds, else still to the caller. */
VOSRT_API vosrt_status vosrt_model_create(const vosrt_model_options *options, const vosrt_engine *engine,
                                          vosrt_model **model);
VOSRT_API void vosrt_model_destroy(vosrt_model *model);
/* What runs, as JSON; valid until the model is destroyed. "" for NULL. */
VOSRT_API const char *vosrt_model_describe(const vosrt_model *model);

/* ---- one video ------------------------------------------------------------------------------------- */

typedef enum vosrt_pixel_format {
    VOSRT_FORMAT_BGR = 0,   /* u8 [H, W, 3] */
    VOSRT_FORMAT_RGB = 1,
    VOSRT_FORMAT_BGRA = 2,  /* u8 [H, W, 4]; alpha is ignored */
    VOSRT_FORMAT_RGBA = 3,
    VOSRT_FORMAT_GRAY = 4,  /* u8 [H, W]; also the format of masks */
    VOSRT_FORMAT_NV12 = 5,  /* luma u8 [H, W], then interleaved chroma u8 [ceil(H/2), ceil(W/2), 2]; BT.601, limited range */
    VOSRT_FORMAT_NV12_709 = 6 /* the same, BT.709, limited range (most HD video) */
} vosrt_pixel_format;

/* A view of the caller's pixels. Rows may have padding; a negative stride reads upwards from `data`, the first row. Pixels are
 * read where they lie; only a dense BGR frame of the working size reaches the engine without being rewritten. */
typedef struct vosrt_image {
    uint32_t struct_size;
    int32_t format;         /* vosrt_pixel_format */
    int32_t height, width;  /* pixels */
    const uint8_t *data;
    int64_t stride;         /* bytes from row to row; 0 = dense */
    const uint8_t *chroma;  /* NV12: first chroma row; NULL = right behind the luma plane */
    int64_t chroma_stride;  /* NV12; 0 = as luma (rounded up to even if dense) */
} vosrt_image;

/* What one frame gives. Arrays belong to the stream, valid until its next call. */
typedef struct vosrt_result {
    uint32_t struct_size;
    int32_t height, width;          /* of the frame, pixels */
    int32_t object_count;
    int64_t index;                  /* of the frame, from 0 */
    const uint8_t *labels;          /* u8 [height, width], dense: 0 is background, else an object id */
    const float *confidence;        /* f32 [height, width], 0 to 1 */
    const uint8_t *object_ids;      /* u8 [object_count], ascending */
    const float *object_confidence; /* f32 [object_count]: mean over the object's pixels, 0 if it has none */
    double resize_ms, encode_ms, match_ms, labels_ms; /* milliseconds spent in each stage of this call */
} vosrt_result;

typedef struct vosrt_stream vosrt_stream;

typedef struct vosrt_stream_options {
    uint32_t struct_size;
    int32_t size;                       /* short side of the working frame, pixels, frames may be enlarged to it; 0 = model's */
    int32_t threads;                    /* of the core; 0 = model's */
    int32_t reserved;
    const vosrt_memory_options *memory; /* instead of the model's; NULL = model's */
    /* Called at the end of every step and add, in the calling thread. Must not use the stream. May be NULL. */
    void (*on_result)(void *user, const vosrt_result *result);
    void *user;
} vosrt_stream_options;

VOSRT_API vosrt_status vosrt_stream_create(const vosrt_model *model, const vosrt_stream_options *options,
                                           vosrt_stream **stream);
VOSRT_API void vosrt_stream_destroy(vosrt_stream *stream);

/* Take the next frame. `mask` (GRAY, of the frame's size, or NULL) marks objects in it: 0 says nothing, else an object id, new
 * or marked anew. An annotated frame shows its annotation. Frames may come before the first mask; they are background.
 * `result` may be NULL. If the mask holds an object too small to represent (VOSRT_INVALID_MASK), the frame counts as taken
 * without a mask. */
VOSRT_API vosrt_status vosrt_stream_step(vosrt_stream *stream, const vosrt_image *frame, const vosrt_image *mask,
                                         vosrt_result *result);
/* Mark objects in the newest frame, after the fact. */
VOSRT_API vosrt_status vosrt_stream_add(vosrt_stream *stream, const vosrt_image *mask, vosrt_result *result);
/* Forget one object; its area becomes background. */
VOSRT_API vosrt_status vosrt_stream_remove(vosrt_stream *stream, int32_t object_id);
/* The newest frame's result once more, e.g. after vosrt_stream_remove or vosrt_stream_load. */
VOSRT_API vosrt_status vosrt_stream_result(vosrt_stream *stream, vosrt_result *result);
/* Copy the newest labels into the caller's u8 [H, W] with a row stride in bytes. */
VOSRT_API vosrt_status vosrt_stream_copy_labels(const vosrt_stream *stream, uint8_t *labels, int64_t stride);
/* The stream's memory, e.g. for vosrt_memory_get_info; NULL before the first frame. Belongs to the stream. */
VOSRT_API vosrt_status vosrt_stream_memory(vosrt_stream *stream, vosrt_memory **memory);

/* As vosrt_memory_save and vosrt_memory_load. A session of another network is refused where both networks are known. Of the
 * options, `size`, `threads` and the callback apply; how labels are propagated comes from the session. */
VOSRT_API vosrt_status vosrt_stream_save(const vosrt_stream *stream, uint8_t *buffer, size_t capacity, size_t *size);
VOSRT_API vosrt_status vosrt_stream_load(const vosrt_model *model, const vosrt_stream_options *options,
                                         const uint8_t *data, size_t size, vosrt_stream **stream);

#ifdef __cplusplus
}
#endif
#endif /* VOSRT_H */
