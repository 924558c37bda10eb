/* vosrt.h - C interface of libvosrt, the native core of vosrt.
 *
 * vosrt follows objects that were marked in one frame through a video. This library holds what a tracked video needs to
 * remember and does everything around the neural network: reading of bundles, pixel formats and resizing, memory of
 * past frames, matching (fused local top-k attention), propagation of soft masks, and upsampling to labels. It runs no
 * network: an *engine*, a small table of callbacks, does. Write one around what your program already uses, or take
 * a ready one from C++ (vosrt_openvino.hpp, vosrt_onnxruntime.hpp, vosrt_tensorrt.hpp).
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
 * the caller was compiled with: fields are only ever added at the end. More than 1024 is refused. Options are filled in by
 * vosrt_…_options_init, after which a program sets what it wants otherwise: 0 is a value like any other.
 * Ownership: handles belong to the caller and are freed by the matching destroy function, which takes NULL too. A stream
 * keeps its model alive, so they may be destroyed in any order; the engine is destroyed with the last of them. Arrays
 * and images belong to the caller, are only read, and are not kept after a call returns. What a result or a description
 * points to belongs to the library; each says how long it stays.
 * Threads: every handle may be used by any number of threads. Calls on one stream (and its memory) or one memory run one after the other: a
 * second thread waits; calls on models and on different handles run at the same time. Threads that share a stream take its
 * results in on_result, which no other call interrupts, or copy them before the next call. A buffer whose size was asked for first
 * (vosrt_memory_soft_masks, vosrt_memory_top_k, save) fits only if no other thread changes the memory in between. A stream has
 * worker threads of its own and runs its engine in the thread that calls it. A callback that calls into its own stream gets
 * VOSRT_INVALID_HANDLE with the name of the call that it is in.
 * Handles: numbers that are not given twice, never addresses. One that was destroyed, or is of another kind, is refused with
 * VOSRT_INVALID_HANDLE. Destroying waits for a call that runs in another thread.
 * fork: threads do not survive it. In the child, streams and memories with more than one thread, and models whose engine has
 * threads, are refused with VOSRT_INVALID_HANDLE; they may be destroyed, and others made. Those with one thread go on in both.
 * Errors: functions that can fail return a status, 0 if all went well. Outputs are undefined unless it is VOSRT_OK, and a
 * failed call leaves the handle as it was (vosrt_stream_step states its one exception). No C++ exception leaves
 * the library, and none may enter it from a host's engine.
 * Memory: a stream allocates at its first frame, when objects are added, and not again. One that was loaded from a session takes
 * no more than the session's bytes call for, and the rest when frames come, until it remembers as many as it may.
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

#define VOSRT_ABI_VERSION 2u

typedef enum vosrt_status {
    VOSRT_OK = 0,
    VOSRT_INVALID_ARGUMENT = 1, /* a value the caller gave cannot be used; vosrt_last_error names it */
    VOSRT_UNSUPPORTED = 2,      /* this processor or build cannot do what was asked for */
    VOSRT_OUT_OF_MEMORY = 3,
    VOSRT_INVALID_MASK = 4, /* an annotation marks nothing, or an object that the feature grid cannot hold */
    VOSRT_INTERNAL = 5,
    VOSRT_ENGINE_FAILED = 6,    /* the engine did; vosrt_last_error has its words */
    VOSRT_INVALID_BUNDLE = 7,   /* missing, altered, unsafe, malformed or made by a newer vosrt */
    VOSRT_INVALID_SESSION = 8,  /* damaged, truncated, made by a newer vosrt or for another network */
    VOSRT_BUFFER_TOO_SMALL = 9, /* the size that is needed was stored */
    VOSRT_INVALID_HANDLE = 10   /* destroyed, of another kind, in use by the very call that calls back, or left behind by a fork */
} vosrt_status;

/* Instruction-set paths. The environment variable VOSRT_ISA (generic, avx2, avx512,
 * avx512bf16, amx, amx-emulated, neon) forces one where options say VOSRT_ISA_AUTO; a path that the processor lacks is
 * refused with VOSRT_UNSUPPORTED. */
typedef enum vosrt_isa {
    VOSRT_ISA_AUTO = 0,
    VOSRT_ISA_GENERIC = 1,      /* portable C++, fp32 */
    VOSRT_ISA_AVX2 = 2,         /* AVX2 + FMA, fp32 */
    VOSRT_ISA_AVX512 = 3,       /* AVX-512 F/BW/DQ/VL, fp32 */
    VOSRT_ISA_AVX512_BF16 = 4,  /* AVX-512 BF16 dot products, fp32 accumulation */
    VOSRT_ISA_AMX = 5,          /* AMX bf16 tiles, fp32 accumulation */
    VOSRT_ISA_AMX_EMULATED = 6, /* the AMX path with its tile instructions in plain C++: for tests, slow */
    VOSRT_ISA_CUDA = 7,         /* libvosrt_cuda: tensor cores, bf16 products, fp32 accumulation; see vosrt_cuda.h */
    VOSRT_ISA_NEON = 8          /* NEON of 64-bit ARM, fp32 */
} vosrt_isa;

typedef enum vosrt_precision {
    VOSRT_PRECISION_AUTO = 0, /* bf16 products where the processor has them, else fp32 */
    VOSRT_PRECISION_FP32 = 1,
    VOSRT_PRECISION_BF16 = 2 /* refused with VOSRT_UNSUPPORTED where no path has bf16 products */
} vosrt_precision;

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
/* 1 if this processor multiplies 8-bit integers and adds them up in one instruction (AVX-512 VNNI, AVX-VNNI), else 0. Engines
 * run quantised networks faster than bf16 there; elsewhere they may be slower, and saturate. */
VOSRT_API int vosrt_has_int8_dot_products(void);

/* Bilinear resize of a u8 image with 3 interleaved channels: pixel centres at half-integers, edges repeated, no
 * antialiasing, integer arithmetic, so that the result is the same on every processor. Strides are in bytes. */
VOSRT_API vosrt_status vosrt_resize_bgr(const uint8_t *source, int32_t source_height, int32_t source_width,
                                        int64_t source_stride, uint8_t *target, int32_t target_height,
                                        int32_t target_width, int64_t target_stride);

/* ---- one video's memory ---------------------------------------------------------------------------- */

typedef struct vosrt_memory vosrt_memory;

/* Set struct_size, call vosrt_memory_options_init, then set height, width, channels and what is to differ from the defaults. */
typedef struct vosrt_memory_options {
    uint32_t struct_size;
    int32_t height;           /* h, grid rows */
    int32_t width;            /* w, grid columns */
    int32_t channels;         /* K, embedding channels */
    int32_t context;          /* 20: recent frames attended besides the reference; may be 0 */
    float radius;             /* 12 cells: a query attends to the cells of recent frames that are nearer than this */
    int32_t top_k;            /* 10: neighbours kept per query; at most 64 */
    float temperature;        /* 0.05: of the softmax over their similarities */
    int32_t pad_context;      /* 1: copies of the reference stand in for frames before it; 0: they are left out */
    int32_t yield_background; /* 1: background yields to objects that appear later; 0: it does not, as in the released program */
    int32_t precision;        /* vosrt_precision; AUTO */
    int32_t isa;              /* vosrt_isa; AUTO, which also honours VOSRT_ISA */
    int32_t threads;          /* 0: one per processor */
    int32_t device;           /* 0: in libvosrt_cuda, number of the GPU */
    int32_t align_corners;    /* 1: the corner cells lie on the corner pixels of a frame, as published; 0: every cell lies on the middle
                                 of its share of the pixels, where the networks that are trained here look */
    float centring;           /* 0: share of the first frame's mean embedding that is removed from all, 0 to 1 */
    float sharpness;          /* 1: exponent of propagated soft masks where they are remembered, 0.1 to 100 */
    float object_bias;        /* 0: logarithm of the factor that objects have beside background in them, -10 to 10 */
    int32_t guided;           /* 0: labels follow the picture's edges within so many pixels of half its size, 0 to 32 */
    int32_t calibration;      /* 0: frames after which object_bias is set again for every object, by what its annotation shows; 0: never */
    float motion;             /* 0: weight of the evidence that a cell moves as an object does and not as background, 0 to 10 */
    /* What becomes of objects (vosrt_state); no mask depends on it. Areas are shares of the usual one, the median of the newest. */
    int32_t lost_after;     /* 3: frames in a row in which an object is hardly seen, after which it is LOST; without a pixel it is at once */
    int32_t back_after;     /* 3: frames in a row with something of a lost object, after which it is BACK; clearly seen, it is at once */
    int32_t back_for;       /* 5: frames for which it stays BACK */
    double lost_share;      /* 0.15: less is hardly seen, 0 to 1 */
    double clear_share;     /* 0.25: as much is clearly seen, more than 0 and at most 1; what lies between is UNSURE */
    double back_confidence; /* 0.6: mean confidence below which what is seen of a lost object does not count, 0 to 1 */
    double iou_factor;      /* 0.31: factor that turns the odds of a mean confidence, to the power of iou_power, into those of the IoU */
    double iou_power;       /* 1.38: 0.1 to 10; the factor 0.001 to 1000 */
    int32_t parts;          /* 1: parts of a cell, to a side, whose soft masks are remembered, 1 to 4; more than 1 needs align_corners 0 */
    int32_t reserved;
} vosrt_memory_options;

/* Fill in the defaults, which the comments above begin with; height, width and channels become 0, which no memory takes. */
VOSRT_API vosrt_status vosrt_memory_options_init(vosrt_memory_options *options);

typedef struct vosrt_memory_info {
    uint32_t struct_size;
    int32_t isa; /* vosrt_isa in use */
    int32_t threads;
    int32_t objects;       /* tracked now */
    int32_t references;    /* appearance times that still have an object */
    int32_t align_corners; /* see vosrt_memory_options */
    int64_t frames;        /* pushed so far */
    int64_t bytes;         /* allocated for keys, labels and work space */
    int32_t height, width; /* grid */
    int32_t channels;
    int32_t top_k;
    int32_t head;    /* channels of a bounded search's heads; 0: every product is computed */
    float survivors; /* share of the keys that the newest frame was bounded with whose products were computed all the same;
                              * 1 where nothing was bounded */
    int32_t parts;   /* see vosrt_memory_options */
    int32_t reserved;
} vosrt_memory_info;

VOSRT_API vosrt_status vosrt_memory_create(const vosrt_memory_options *options, vosrt_memory **memory);
VOSRT_API void vosrt_memory_destroy(vosrt_memory *memory);
VOSRT_API vosrt_status vosrt_memory_get_info(const vosrt_memory *memory, vosrt_memory_info *info);

/* Take the next frame: `embedding` is f32 [h, w, K], each cell of unit length. Matches it against the memory,
 * reads out its soft masks and makes it the newest frame. The one before is remembered from then on as sharpness and object_bias
 * say, unless it was annotated. */
VOSRT_API vosrt_status vosrt_memory_push(vosrt_memory *memory, const float *embedding);

/* Mark objects in the newest frame: `mask` is u8 [H, W] (row stride in bytes), 0 = leave as predicted, else an
 * object id. New ids start here; known ids are corrected and take this frame as their reference. */
VOSRT_API vosrt_status vosrt_memory_annotate(vosrt_memory *memory, const uint8_t *mask, int32_t height,
                                             int32_t width, int64_t stride);

/* Forget one object; its area becomes background. */
VOSRT_API vosrt_status vosrt_memory_remove(vosrt_memory *memory, int32_t object_id);

/* Ids of the tracked objects, ascending. `ids` has room for 255. */
VOSRT_API vosrt_status vosrt_memory_object_ids(const vosrt_memory *memory, uint8_t *ids, int32_t *count);

/* The picture of the newest frame, as the network saw it: u8 [height, width, 3] BGR, stride in bytes. Where `guided` is not 0,
 * labels follow its edges from then on until the next frame; elsewhere this does nothing. Streams see to it by themselves. */
VOSRT_API vosrt_status vosrt_memory_guide(vosrt_memory *memory, const uint8_t *bgr, int32_t height, int32_t width,
                                          int64_t stride);

/* Labels of the newest frame at H x W: soft masks are upsampled (bilinear, see align_corners), the largest channel
 * wins, ties go to background, then to the smallest id. `confidence` (f32 [H, W]) is the winner's value and may be NULL. */
VOSRT_API vosrt_status vosrt_memory_labels(vosrt_memory *memory, int32_t height, int32_t width, uint8_t *labels,
                                           float *confidence);

/* Soft masks of the newest frame, f32 [h * parts, w * parts, 1 + objects] (vosrt_memory_info says how many parts): background, then
 * objects by ascending id. */
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
    int32_t threads;      /* that share the work, started for this call; 0 = one per processor */
    int32_t queries;      /* cells that read */
    int32_t top_k;        /* neighbours of each, at most 64 */
    int32_t objects;      /* at most 255 */
    int32_t slots, cells; /* frames whose values are kept, and cells of each */
    int32_t channels;     /* V */
    float temperature;    /* of the softmax over similarities, more than 0 */
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
    const uint8_t *annotation; /* what was marked in the newest frame, u8 [frame_height, frame_width], or NULL */
    uint8_t model[32];         /* which network computed the embeddings: SHA-256 of its encoder graph */
} vosrt_session;

typedef struct vosrt_load_options {
    uint32_t struct_size;
    int32_t precision; /* vosrt_precision; AUTO = that of the session */
    int32_t isa;       /* vosrt_isa; AUTO = VOSRT_ISA, else the session's, else the fastest with its number format */
    int32_t threads;   /* 0 = one per processor */
    int32_t channels;  /* of the network that is to go on with it: a session with another number is refused; 0 = any */
    int32_t max_side;  /* of its grid, cells: a session with a larger one is refused; 0 = any */
    int32_t device;    /* libvosrt_cuda: number of the GPU; 0 in libvosrt */
    int32_t reserved;
    const uint8_t *model; /* SHA-256 of its encoder graph, 32 bytes: a session of another one is refused; NULL or zeros = any */
} vosrt_load_options;

/* Fill in AUTO, one thread per processor, device 0 and any network. */
VOSRT_API vosrt_status vosrt_load_options_init(vosrt_load_options *options);

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
    int32_t trained;  /* 0: random weights */
    const char *name; /* this and all other text: UTF-8, valid until the bundle is closed */
    const char *summary;
    const char *feature;      /* layer of the network that the embedding comes from */
    const char *input_name;   /* tensor u8 [n, height, width, 3], BGR */
    const char *output_name;  /* tensor f32 [n, h, w, K] */
    const char *path;         /* of the directory, as given */
    const char *context_name; /* output of the encoder that the mask encoder takes as "context"; NULL without mask networks */
} vosrt_bundle_info;

/* Read the directory `path` (UTF-8), check its manifest, its files' sizes and their SHA-256. */
VOSRT_API vosrt_status vosrt_bundle_open(const char *path, vosrt_bundle **bundle);
VOSRT_API void vosrt_bundle_close(vosrt_bundle *bundle);
VOSRT_API vosrt_status vosrt_bundle_get_info(const vosrt_bundle *bundle, vosrt_bundle_info *info);
/* Content of manifest.json as it was checked (UTF-8); valid until the bundle is closed. */
VOSRT_API vosrt_status vosrt_bundle_manifest(const vosrt_bundle *bundle, const char **text, size_t *size);
/* Path of the ONNX file of a graph, e.g. "encoder", or "encoder_int8" where the bundle carries the same network quantised; valid until the bundle is closed. A bundle such as `refined` may take the
 * file from a bundle beside it and add outputs: only vosrt_bundle_graph_content has those. */
VOSRT_API vosrt_status vosrt_bundle_graph_path(const vosrt_bundle *bundle, const char *graph, const char **path);
/* Content of that file as it was checked; valid until the bundle is closed. Give engines these bytes and not the path, whose
 * file may have changed since. */
VOSRT_API vosrt_status vosrt_bundle_graph_content(const vosrt_bundle *bundle, const char *graph, const uint8_t **bytes,
                                                  size_t *size);

/* ---- manifests and graphs: for programs that make bundles, or read their files themselves ------------------ */

/* Check the content of a manifest.json as vosrt_bundle_open does. Messages name the file `where` (UTF-8). */
VOSRT_API vosrt_status vosrt_manifest_check(const char *text, size_t size, const char *where);
/* Check an ONNX graph as vosrt_bundle_open does: weights inside the file and finite, known operators, bounded sizes. Messages name
 * the file `where` (UTF-8). Unless `input` is NULL, the graph must take u8 [n, height, width, 3] of that name, and give
 * f32 [n, h, w, channels] named `output`. */
VOSRT_API vosrt_status vosrt_graph_check(const uint8_t *graph, size_t size, const char *where, const char *input,
                                         const char *output, int32_t channels);
/* Write the names of a graph's outputs to `buffer`, in the order of the file, each with its terminating zero; `buffer` and `size` as
 * of vosrt_memory_save. The operators are not checked. */
VOSRT_API vosrt_status vosrt_graph_outputs(const uint8_t *graph, size_t graph_size, const char *where, uint8_t *buffer,
                                           size_t capacity, size_t *size);
/* Write a graph and, behind it, further nodes, weights and outputs to `buffer`; protobuf reads both as one graph. If `added` declares
 * the output `embedding`, the outputs of `graph` become tensors inside it. */
VOSRT_API vosrt_status vosrt_graph_append(const uint8_t *graph, size_t graph_size, const uint8_t *added, size_t added_size,
                                          const char *embedding, const char *where, uint8_t *buffer, size_t capacity,
                                          size_t *size);

/* ---- engines and models ---------------------------------------------------------------------------- */

/* One frame to embed. */
typedef struct vosrt_encode_task {
    uint32_t struct_size;
    int32_t height, width;           /* of the working frame, pixels */
    int32_t grid_height, grid_width; /* h, w */
    int32_t channels;                /* K */
    const uint8_t *bgr;              /* u8 [height, width, 3], dense */
    float *embedding;                /* out: f32 [h, w, K], dense, each cell of unit length; 64-byte aligned */
    void **features;                 /* out: what the engine keeps of the frame for its mask networks, until vosrt_engine.release;
                                      * NULL where the stream refines no masks, which spares the engine the work */
} vosrt_encode_task;

/* Masks of M objects in one frame to encode as values. */
typedef struct vosrt_encode_masks_task {
    uint32_t struct_size;
    int32_t objects;                 /* M */
    int32_t height, width;           /* of the working frame, pixels */
    int32_t grid_height, grid_width; /* h, w */
    int32_t value_channels;          /* V */
    int32_t reserved;
    void *features;     /* of this frame, from encode */
    const uint8_t *bgr; /* u8 [height, width, 3], dense */
    const float *masks; /* f32 [M, height, width], 0 to 1 */
    float *values;      /* out: f32 [M, h, w, V] */
} vosrt_encode_masks_task;

/* Masks of M objects in one frame to decode. */
typedef struct vosrt_decode_masks_task {
    uint32_t struct_size;
    int32_t objects;                   /* M */
    int32_t grid_height, grid_width;   /* h, w */
    int32_t value_channels;            /* V */
    int32_t logit_height, logit_width; /* a quarter of the working frame, rounded up */
    int32_t reserved;
    void *features;       /* of this frame, from encode */
    const float *readout; /* f32 [M, h, w, V]: values of the objects' past, read by this frame */
    const float *values;  /* f32 [M, h, w, V]: values of the masks so far */
    float *logits;        /* out: f32 [M, logit_height, logit_width] */
} vosrt_decode_masks_task;

typedef enum vosrt_engine_flags {
    VOSRT_ENGINE_SERIAL = 1,  /* its networks must not run in several threads at once: the model sees to it */
    VOSRT_ENGINE_THREADS = 2, /* it has threads of its own: in a process that forked off, the model is refused and not destroyed */
    VOSRT_ENGINE_ON_GPU = 4   /* for libvosrt_cuda: the mask networks take and give arrays on the GPU of the memory, and queue their work
                               * behind that of the memory's stream and before what is queued there next; see vosrt_stream_refine */
} vosrt_engine_flags;

/* What runs the networks. The model copies the table. */
typedef struct vosrt_engine {
    uint32_t struct_size;
    uint32_t flags;   /* vosrt_engine_flags */
    const char *name; /* for descriptions; copied; NULL = "host" */
    void *user;       /* handed to the callbacks */
    /* VOSRT_OK, or any other value after vosrt_set_last_error. Called from every thread that steps a stream. NULL where all frames
     * come with their embedding, by vosrt_stream_take. */
    vosrt_status (*encode)(void *user, const vosrt_encode_task *task);
    void (*destroy)(void *user); /* called once, after the last of the others; may be NULL */
    /* The mask networks, both or none: without them, streams of a bundle that has some follow objects by its encoder alone. */
    vosrt_status (*encode_masks)(void *user, const vosrt_encode_masks_task *task);
    vosrt_status (*decode_masks)(void *user, const vosrt_decode_masks_task *task);
    void (*release)(void *user, void *features); /* frees what encode stored in `features`; may be NULL */
} vosrt_engine;

/* Working size: the short side, in pixels, at which the network sees frames. It may also be one of these. */
typedef enum vosrt_size {
    VOSRT_SIZE_DEFAULT = 0, /* of a stream: its model's. Smaller frames keep their own size, but for enlarge_percent */
    VOSRT_SIZE_NATIVE = -1  /* every frame's own size, which takes tens of times as long for 4K frames as 480 */
} vosrt_size;

typedef struct vosrt_model vosrt_model;

typedef struct vosrt_model_options {
    uint32_t struct_size;
    int32_t channels;                   /* K */
    int32_t stride;                     /* 8: pixels of the working frame per grid cell */
    int32_t min_side, max_side;         /* 16, 4096: of a working frame, pixels */
    int32_t size;                       /* 480: short side of the working frame, to which larger frames are shrunk; or NATIVE */
    const vosrt_memory_options *memory; /* defaults of streams; height, width and channels are not read; NULL = all default.
                                         * align_corners is that of all streams; without, working frames are whole numbers of cells */
    const char *name;                   /* for descriptions; copied; NULL = "" */
    uint8_t graph_sha256[32];           /* of the encoder, so that sessions are not mixed up; all zero = unknown */
    int32_t value_channels;             /* V of the mask networks; 0: there are none, and the rest is not read */
    int32_t rounds;                     /* of refinement, 0 to 4, where a stream does not say otherwise */
    int32_t residual;                   /* 1: logits correct what was propagated; 0: they draw masks from nothing */
    int32_t feedback;                   /* 1: later frames read refined masks, the default; 0: these are shown alone */
    int32_t enlarge_percent;            /* 100: of their own size, to which frames smaller than `size` are enlarged at most; to 400 */
    int32_t reserved;                   /* 0 */
} vosrt_model_options;

/* Fill in the defaults, which the comments above begin with; channels becomes 0, which no model takes. */
VOSRT_API vosrt_status vosrt_model_options_init(vosrt_model_options *options);
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
    VOSRT_FORMAT_BGR = 0, /* u8 [H, W, 3] */
    VOSRT_FORMAT_RGB = 1,
    VOSRT_FORMAT_BGRA = 2, /* u8 [H, W, 4]; alpha is ignored */
    VOSRT_FORMAT_RGBA = 3,
    VOSRT_FORMAT_GRAY = 4,    /* u8 [H, W]; also the format of masks */
    VOSRT_FORMAT_NV12 = 5,    /* luma u8 [H, W], then interleaved chroma u8 [ceil(H/2), ceil(W/2), 2]; BT.601, limited range */
    VOSRT_FORMAT_NV12_709 = 6 /* the same, BT.709, limited range (most HD video) */
} vosrt_pixel_format;

/* A view of the caller's pixels. Rows may have padding, up to 2 GiB; a negative stride reads upwards from `data`, the first row. Pixels are
 * read where they lie; only a dense BGR frame of the working size reaches the engine without being rewritten. */
typedef struct vosrt_image {
    uint32_t struct_size;
    int32_t format;        /* vosrt_pixel_format */
    int32_t height, width; /* pixels */
    const uint8_t *data;
    int64_t stride;        /* bytes from row to row; 0 = dense */
    const uint8_t *chroma; /* NV12: first chroma row; NULL = right behind the luma plane */
    int64_t chroma_stride; /* NV12; 0 = as luma (rounded up to even if dense) */
} vosrt_image;

/* What became of an object, told from its area and confidence in this frame and in the ones before, by the thresholds of
 * vosrt_memory_options. */
typedef enum vosrt_state {
    VOSRT_STATE_PRESENT = 0, /* it is seen */
    VOSRT_STATE_LOST = 1,    /* it left or is covered: it has no pixel, or for some frames hardly any beside its usual area */
    VOSRT_STATE_BACK = 2,    /* it is seen again, since few frames */
    VOSRT_STATE_UNSURE = 3   /* it has far fewer pixels than usual */
} vosrt_state;

/* One tracked object in one frame. Arrays of them are read with the struct_size of their first element as the step from one
 * to the next, so that later versions may add fields. */
typedef struct vosrt_object {
    uint32_t struct_size; /* set by the library in results */
    int32_t id;
    int32_t present;               /* 1: it has a pixel in this frame; 0: all from here to centroid_y is 0 */
    int32_t x, y, width, height;   /* the smallest box around its pixels */
    float confidence;              /* mean over its pixels, 0 to 1 */
    int64_t area_px;               /* its pixels */
    double centroid_x, centroid_y; /* mean of its pixels, whose centres have whole coordinates */
    int32_t state;                 /* vosrt_state */
    float state_confidence;        /* 0 to 1: the IoU to expect of the mask with the object; of LOST, how clearly it is not seen */
} vosrt_object;

/* Measure the objects of dense labels u8 [height, width], e.g. after they were cleaned: one vosrt_object for each of the
 * `count` ids, at most 255. Set struct_size of the first. `confidence` is f32 [height, width] or NULL, which leaves that of objects
 * 0. The state is PRESENT or LOST, by pixels alone, with confidence 0; vosrt_follow_object tells more. */
VOSRT_API vosrt_status vosrt_measure_objects(const uint8_t *labels, const float *confidence, int32_t height, int32_t width,
                                             const uint8_t *ids, int32_t count, vosrt_object *objects);

/* What is remembered of one object to tell its state. The caller's: zero, with struct_size, before the first frame; it may be copied
 * and stored. What stands in it is the library's. */
typedef struct vosrt_presence {
    uint32_t struct_size;
    int32_t state, streak;               /* after the newest frame; frames in a row that speak against it, or since it is BACK */
    int32_t state_before, streak_before; /* before that frame */
    int32_t count;                       /* of areas */
    int64_t frames;                      /* number of the newest frame + 1; 0: none */
    int64_t area_px;                     /* in the newest frame; 0: it does not count as usual; negative: it replaces the usual ones */
    int64_t areas_px[15];                /* the usual ones before that frame, newest last */
} vosrt_presence;

/* Set state and state_confidence of an object that was measured in a frame, from 0, rising. Streams do so by themselves. The newest
 * frame may be given again, e.g. after a correction. Confidence 1, as annotations have it, makes the area the usual one. */
VOSRT_API vosrt_status vosrt_follow_object(vosrt_presence *presence, int64_t frame, vosrt_object *object);

/* The same with other thresholds than the default ones; nothing else of `options` is read. */
VOSRT_API vosrt_status vosrt_follow_object_with(const vosrt_memory_options *options, vosrt_presence *presence, int64_t frame,
                                                vosrt_object *object);

/* What one frame gives. Arrays belong to the stream, valid until its next call. */
typedef struct vosrt_result {
    uint32_t struct_size;
    int32_t height, width; /* of the frame, pixels */
    int32_t object_count;
    int64_t index;                                    /* of the frame, from 0 */
    const uint8_t *labels;                            /* u8 [height, width], dense: 0 is background, else an object id */
    const float *confidence;                          /* f32 [height, width], 0 to 1 */
    const uint8_t *object_ids;                        /* u8 [object_count], ascending */
    const float *object_confidence;                   /* f32 [object_count]: mean over the object's pixels, 0 if it has none */
    double resize_ms, encode_ms, match_ms, labels_ms; /* milliseconds spent in each stage of this call */
    const vosrt_object *objects;                      /* [object_count], by ascending id */
    double refine_ms;                                 /* as the others; mask networks included */
} vosrt_result;

typedef struct vosrt_stream vosrt_stream;

/* Rounds of refinement: 1 to 4, or one of these. */
typedef enum vosrt_refine {
    VOSRT_REFINE_DEFAULT = 0, /* the model's rounds, if its engine has mask networks */
    VOSRT_REFINE_OFF = -1,    /* masks are shown as they were propagated */
    VOSRT_REFINE_READOUT = -2 /* no round: what was read of the past is decoded alone */
} vosrt_refine;

typedef struct vosrt_stream_options {
    uint32_t struct_size;
    int32_t size;                       /* short side of the working frame, pixels, frames may be enlarged to it; or vosrt_size */
    int32_t threads;                    /* of the core; 0 = model's */
    int32_t refine;                     /* vosrt_refine; refused where the engine has no mask networks */
    const vosrt_memory_options *memory; /* instead of the model's; NULL = model's */
    /* Called at the end of every step and add, in the calling thread. Calls into the stream are refused. May be NULL. */
    void (*on_result)(void *user, const vosrt_result *result);
    void *user;
} vosrt_stream_options;

/* Fill in what follows the model in everything, without a callback. */
VOSRT_API vosrt_status vosrt_stream_options_init(vosrt_stream_options *options);

VOSRT_API vosrt_status vosrt_stream_create(const vosrt_model *model, const vosrt_stream_options *options,
                                           vosrt_stream **stream);
VOSRT_API void vosrt_stream_destroy(vosrt_stream *stream);

/* Take the next frame. `mask` (GRAY, of the frame's size, or NULL) marks objects in it: 0 says nothing, else an object id, new
 * or one to correct. An annotated frame shows its annotation. Frames may come before the first mask; they are background.
 * `result` may be NULL. If the mask holds an object too small to represent (VOSRT_INVALID_MASK), the frame counts as taken
 * without a mask. If a mask network fails, it counts as taken, and is shown as it was propagated. */
VOSRT_API vosrt_status vosrt_stream_step(vosrt_stream *stream, const vosrt_image *frame, const vosrt_image *mask,
                                         vosrt_result *result);
/* A frame that the host has encoded, e.g. ahead of its turn. Nothing of it is kept after the call but `features`. */
typedef struct vosrt_embedding {
    uint32_t struct_size;
    int32_t frame_height, frame_width; /* of the frame as it was given, pixels */
    int32_t height, width;             /* of the working frame, pixels; 0 where bgr is NULL */
    int32_t grid_height, grid_width;   /* h, w */
    int32_t channels;                  /* K */
    const float *array;                /* f32 [h, w, K], dense, each cell of unit length */
    const uint8_t *bgr;                /* the working frame, u8 [height, width, 3], dense; NULL: not guided, not refined */
    void *features;                    /* for the mask networks; the caller's, valid until the stream takes another frame or ends */
    double resize_ms, encode_ms;       /* that it took to get here, for the result */
} vosrt_embedding;

/* vosrt_stream_step for such a frame: the engine's encode is not called. */
VOSRT_API vosrt_status vosrt_stream_take(vosrt_stream *stream, const vosrt_embedding *embedding, const vosrt_image *mask,
                                         vosrt_result *result);
/* For hosts whose embeddings stay on a GPU: check that the next frame fits and, before the first one, make the memory, to which the host
 * then pushes the embedding itself, e.g. by vosrt_cuda_memory_frame. `array`, `bgr` and `features` are not read. */
VOSRT_API vosrt_status vosrt_stream_expect(vosrt_stream *stream, const vosrt_embedding *embedding);
/* Refine the masks of the frame that such a host has pushed, where the engine has VOSRT_ENGINE_ON_GPU: `height`, `width`, `bgr` (on the GPU) and
 * `features` are read, and are as the mask networks see them until the next frame. Queued, as far as the networks are. */
VOSRT_API vosrt_status vosrt_stream_refine(vosrt_stream *stream, const vosrt_embedding *embedding);
/* vosrt_measure_objects of labels that such a host fetched itself, each frame once and in their order, with the states of the stream's objects. */
VOSRT_API vosrt_status vosrt_stream_measure(vosrt_stream *stream, int64_t frame, const uint8_t *labels, const float *confidence,
                                            int32_t height, int32_t width, const uint8_t *ids, int32_t count, vosrt_object *objects);
/* Mark objects in the newest frame, after the fact. If a mask network fails, they are marked all the same. */
VOSRT_API vosrt_status vosrt_stream_add(vosrt_stream *stream, const vosrt_image *mask, vosrt_result *result);
/* Forget one object; its area becomes background. */
VOSRT_API vosrt_status vosrt_stream_remove(vosrt_stream *stream, int32_t object_id);
/* The newest frame's result once more, e.g. after vosrt_stream_remove or vosrt_stream_load. */
VOSRT_API vosrt_status vosrt_stream_result(vosrt_stream *stream, vosrt_result *result);
/* Copy the newest labels into the caller's u8 [H, W] with a row stride in bytes. */
VOSRT_API vosrt_status vosrt_stream_copy_labels(const vosrt_stream *stream, uint8_t *labels, int64_t stride);
/* The stream's memory, e.g. for vosrt_memory_get_info; NULL before the first frame. Belongs to the stream and ends with it;
 * vosrt_memory_destroy leaves it alone. */
VOSRT_API vosrt_status vosrt_stream_memory(vosrt_stream *stream, vosrt_memory **memory);

/* As vosrt_memory_save and vosrt_memory_load. A session of another network is refused where both networks are known. Of the
 * options, `size`, `threads` and the callback apply; how labels are propagated comes from the session. */
VOSRT_API vosrt_status vosrt_stream_save(const vosrt_stream *stream, uint8_t *buffer, size_t capacity, size_t *size);
VOSRT_API vosrt_status vosrt_stream_load(const vosrt_model *model, const vosrt_stream_options *options,
                                         const uint8_t *data, size_t size, vosrt_stream **stream);

/* ---- clicks ---------------------------------------------------------------------------------------- */

/* A frame that was encoded, ready for clicks and boxes that become a mask to follow, without a network that was trained for it. */
typedef struct vosrt_prompt vosrt_prompt;

/* The constants of the method; vosrt_prompt_options_init sets them as they were chosen. */
typedef struct vosrt_prompt_options {
    uint32_t struct_size;
    int32_t dimensions;       /* of the features that are kept */
    float feature_edges;      /* how much a difference of features weakens an edge of the cells' graph, in mean differences */
    float colour_edges;       /* likewise of colours */
    float floor;              /* weight of the weakest edge */
    float leak;               /* share of the walkers that stop at each cell */
    float border;             /* weight with which the border of the frame is background */
    float agreement;          /* how much stronger walkers stop where the classifier agrees with the mask */
    float balance;            /* exponent of the area by which a cut is divided, for the first click */
    float later_balance;      /* the same for later clicks */
    float grow;               /* a later positive click adds at most this multiple of the mask */
    float shrink;             /* a negative click removes at most this share of the mask */
    float reach;              /* a later click changes at most this multiple of its squared distance to what it may not change */
    float ridge;              /* of the classifier, relative to the mean variance */
    float gain;               /* of its logistic function */
    float click_share;        /* weight of the clicked cells among all that it learns from */
    float place;              /* weight of the position among the features */
    float keep;               /* share of the mask in the prior, against the classifier */
    float prior;              /* weight of the prior against that of an edge of the fine graph */
    float fine_feature_edges; /* as feature_edges, of the fine graph */
    float fine_colour_edges;  /* likewise */
    float fine_floor;         /* likewise */
    float crumbs;             /* parts smaller than this share of the largest one, in which no click is, are removed */
    float holes;              /* holes smaller than this share of the mask, in which no click is, are filled */
} vosrt_prompt_options;

VOSRT_API vosrt_status vosrt_prompt_options_init(vosrt_prompt_options *options);
/* `frame` has its working frame, `bgr`; `cell` is the side of a cell in pixels of it. `options` may be NULL. */
VOSRT_API vosrt_status vosrt_prompt_create(const vosrt_embedding *frame, int32_t cell, const vosrt_prompt_options *options,
                                           vosrt_prompt **prompt);
/* The same for a frame that the model's engine encodes; `size` is the short side of the working frame or a vosrt_size. */
VOSRT_API vosrt_status vosrt_prompt_encode(const vosrt_model *model, const vosrt_image *frame, int32_t size, vosrt_prompt **prompt);
VOSRT_API void vosrt_prompt_destroy(vosrt_prompt *prompt);
/* Find the object that is clicked. `points` are f32 [count][3]: x, y in pixels of the frame, and above 0 where the object is, else where it is
 * not; each corrects what those before it gave. `box`, f32 [4]: x, y, width, height around the object; may be NULL. `mask`, VOSRT_FORMAT_GRAY of the frame's size: what is
 * corrected, not 0 for the object; may be NULL. `out` is u8 [H, W], dense: 1 for the object, else 0. Further points of the same box
 * and mask take one step each. */
VOSRT_API vosrt_status vosrt_prompt_segment(vosrt_prompt *prompt, const float *points, int32_t count, const float *box,
                                            const vosrt_image *mask, uint8_t *out);

#ifdef __cplusplus
}
#endif
#endif /* VOSRT_H */
