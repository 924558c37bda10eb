/* vosrt_cuda.h - what libvosrt_cuda has besides vosrt.h.
 *
 * libvosrt_cuda is libvosrt with memories on an NVIDIA GPU: every function of vosrt.h is there and means the same, so a program
 * links one instead of the other, or opens it with dlopen where a driver is. vosrt_memory_options.device is the number of the GPU.
 * Products are bf16 and accumulated in fp32. Sessions are those of libvosrt's bf16 paths: one that was saved here continues there
 * up to rounding, and the other way round; one with fp32 keys is refused (VOSRT_UNSUPPORTED). Here,
 * too, a loaded session continues bit for bit, but that sums over objects may round differently if one was removed before and
 * another is marked later.
 *
 * The functions below take and give arrays on the GPU, so that frames, embeddings and labels need not leave it:
 *
 *     vosrt_cuda_queue_create(0, &queue);                            // a CUDA stream; or take your own
 *     vosrt_cuda_memory_use_stream(memory, vosrt_cuda_queue_stream(queue));
 *     for (;;) {
 *         ... queue your network on the same stream; it writes embedding ...
 *         vosrt_cuda_memory_frame(memory, &frame);                   // queued: match, read-out, labels; nothing waits
 *     }
 *
 * From its third call with the same arrays on, vosrt_cuda_memory_frame launches a recorded CUDA graph, until objects or references change.
 * In the steady state nothing is allocated. If the caller is recording the stream itself, the work becomes part of the
 * caller's graph, and counts when that is launched: say vosrt_cuda_memory_repeated after each launch. The first frame cannot be
 * recorded. The frame's number lives on the GPU, so one recording fits every frame until objects or references change.
 *
 * Errors: a failed CUDA call is VOSRT_INTERNAL and named in vosrt_last_error, except for VOSRT_OUT_OF_MEMORY, and
 * VOSRT_UNSUPPORTED where there is no driver, no GPU, or one that this build has no code for. After VOSRT_INTERNAL the GPU's context may be
 * lost: destroy the handles.
 * Threads: as in vosrt.h. Calls make their GPU the calling thread's current one.
 */
#ifndef VOSRT_CUDA_H
#define VOSRT_CUDA_H

#include "vosrt.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vosrt_cuda_device {
    uint32_t struct_size;
    int32_t architecture; /* compute capability: 80, 86, 90 ... */
    int32_t multiprocessors;
    int32_t driver, runtime; /* newest CUDA of the driver; CUDA of this build: 13000 is 13.0 */
    int32_t reserved;
    int64_t total_bytes, free_bytes;
    char name[256];
} vosrt_cuda_device;

VOSRT_API vosrt_status vosrt_cuda_device_count(int32_t *count);
VOSRT_API vosrt_status vosrt_cuda_device_info(int32_t device, vosrt_cuda_device *info);

/* Memory on the GPU, and pinned memory on the host. `what` is for the error's text, e.g. "frames". */
VOSRT_API vosrt_status vosrt_cuda_allocate(int32_t device, size_t bytes, const char *what, void **memory);
VOSRT_API void vosrt_cuda_free(void *memory);
VOSRT_API vosrt_status vosrt_cuda_allocate_host(size_t bytes, void **memory);
VOSRT_API void vosrt_cuda_free_host(void *memory);

/* ---- queues: CUDA streams -------------------------------------------------------------------------- */

typedef struct vosrt_cuda_queue vosrt_cuda_queue;
typedef struct vosrt_cuda_event vosrt_cuda_event;

VOSRT_API vosrt_status vosrt_cuda_queue_create(int32_t device, vosrt_cuda_queue **queue);
VOSRT_API void vosrt_cuda_queue_destroy(vosrt_cuda_queue *queue);
/* From now on this is the caller's cudaStream_t; NULL = a stream of its own again. CUDA's default stream is cudaStreamLegacy, not NULL. */
VOSRT_API vosrt_status vosrt_cuda_queue_use_stream(vosrt_cuda_queue *queue, void *stream);
VOSRT_API void *vosrt_cuda_queue_stream(const vosrt_cuda_queue *queue); /* cudaStream_t */
/* Queued; host memory is pinned, or the call waits. */
VOSRT_API vosrt_status vosrt_cuda_queue_upload(vosrt_cuda_queue *queue, void *device, const void *host, size_t bytes);
VOSRT_API vosrt_status vosrt_cuda_queue_download(vosrt_cuda_queue *queue, void *host, const void *device, size_t bytes);
VOSRT_API vosrt_status vosrt_cuda_queue_copy(vosrt_cuda_queue *queue, void *to, const void *from, size_t bytes);
VOSRT_API vosrt_status vosrt_cuda_queue_wait(vosrt_cuda_queue *queue);
/* vosrt_resize_bgr of an image on the GPU, into a dense one; the same bytes. */
VOSRT_API vosrt_status vosrt_cuda_queue_resize_bgr(vosrt_cuda_queue *queue, const uint8_t *source, int32_t source_height,
                                                   int32_t source_width, int64_t source_stride, uint8_t *target,
                                                   int32_t target_height, int32_t target_width);
/* What video decoders give, as u8 [height, width, 3] in BGR order, dense: luma u8 [height, width] and chroma u8 [height / 2, width / 2, 2],
 * Cb and Cr, halves rounded up, both with rows of `stride` bytes; BT.709 or, if not set, BT.601; full range or 16 to 235. */
VOSRT_API vosrt_status vosrt_cuda_queue_nv12_to_bgr(vosrt_cuda_queue *queue, const uint8_t *luma, const uint8_t *chroma, int64_t stride,
                                                    int32_t height, int32_t width, int32_t bt709, int32_t full_range, uint8_t *target);

VOSRT_API vosrt_status vosrt_cuda_event_create(int32_t device, vosrt_cuda_event **event);
VOSRT_API void vosrt_cuda_event_destroy(vosrt_cuda_event *event);
VOSRT_API vosrt_status vosrt_cuda_queue_record(vosrt_cuda_queue *queue, vosrt_cuda_event *event);
/* What is queued from now on waits for the event. */
VOSRT_API vosrt_status vosrt_cuda_queue_wait_for(vosrt_cuda_queue *queue, vosrt_cuda_event *event);
/* The calling thread waits for the event; at once if it was never recorded. */
VOSRT_API vosrt_status vosrt_cuda_event_wait(vosrt_cuda_event *event);

/* ---- memories -------------------------------------------------------------------------------------- */

/* A frame's arrays on the GPU. */
typedef struct vosrt_cuda_frame {
    uint32_t struct_size;
    int32_t height, width; /* of the labels, pixels */
    int32_t reserved;
    const float *embedding; /* f32 [h, w, K], dense, each cell of unit length; read when the work runs */
    uint8_t *labels;        /* out: u8 [height, width], dense; NULL = none */
    float *confidence;      /* out: f32 [height, width]; may be NULL */
    uint64_t *totals;       /* out: u64 [256, 2]: per label, the sum of confidence in units of 2^-20, and pixels; may be NULL */
    const uint8_t *bgr;     /* picture of the frame, as the network saw it, u8 [bgr_height, bgr_width, 3], dense, for `guided`; NULL = none */
    int32_t bgr_height, bgr_width;
} vosrt_cuda_frame;

/* Work of this memory is queued on the caller's cudaStream_t from now on, behind what was queued before; NULL = on its own again.
 * CUDA's default stream is cudaStreamLegacy, not NULL. A stream that the caller is recording is entered, and left, without a wait: nothing
 * runs meanwhile. Record on a stream that nobody else uses: what other threads queue on it becomes part of the graph. */
VOSRT_API vosrt_status vosrt_cuda_memory_use_stream(vosrt_memory *memory, void *stream);
VOSRT_API vosrt_status vosrt_cuda_memory_stream(const vosrt_memory *memory, void **stream);
/* vosrt_memory_push and, if frame->labels is set, vosrt_memory_labels. */
VOSRT_API vosrt_status vosrt_cuda_memory_frame(vosrt_memory *memory, const vosrt_cuda_frame *frame);
/* vosrt_memory_guide with a picture on the GPU, u8 [height, width, 3] BGR, dense; read when the work runs. */
VOSRT_API vosrt_status vosrt_cuda_memory_guide(vosrt_memory *memory, const uint8_t *bgr, int32_t height, int32_t width);
/* vosrt_memory_labels of the newest frame; frame->embedding and frame->bgr are not read. */
VOSRT_API vosrt_status vosrt_cuda_memory_labels(vosrt_memory *memory, const vosrt_cuda_frame *frame);
/* The caller's recording of one vosrt_cuda_memory_frame was launched, for the first time or again. All of the caller's
 * recordings have pictures, or none has. */
VOSRT_API vosrt_status vosrt_cuda_memory_repeated(vosrt_memory *memory);
/* V_q: values read with the newest frame's top-k of a reference (0 = oldest, see vosrt_memory_top_k), weighted as soft masks are.
 * at_reference f32 [h*w, channels]: values at the reference; recent f32 [slots, h*w, channels]: frame t in slot t mod slots, slots >= context;
 * out f32 [h*w, channels]. */
VOSRT_API vosrt_status vosrt_cuda_memory_values(vosrt_memory *memory, int32_t reference, const float *at_reference,
                                                const float *recent, int32_t slots, int32_t channels, float *out);

/* Refinement. Planes are f32 [1 + M, height, width], dense: soft masks of the background, then of the M objects by ascending id, of
 * sum 1. Resizing is bilinear with pixel centres at half-integers, whatever vosrt_memory_options.align_corners was. Everything is queued;
 * what planes and logits hold is not checked.
 *
 * The newest frame's soft masks as planes, without the background what a mask encoder takes: out planes. */
VOSRT_API vosrt_status vosrt_cuda_memory_planes(vosrt_memory *memory, float *planes, int32_t height, int32_t width);
/* What a decoder makes of the newest frame: out planes, from logits f32 [M, logits_height, logits_width]. They are resized.
 * A residual decoder's correct its soft masks: a mask is proportional to max(0.01, soft) exp(logit). Another's give masks
 * proportional to the odds of p = 1 / (1 + exp(-logit)), the background's p being the product of all 1 - p. */
VOSRT_API vosrt_status vosrt_cuda_memory_refine(vosrt_memory *memory, const float *logits, int32_t logits_height, int32_t logits_width,
                                                int32_t residual, float *planes, int32_t height, int32_t width);
/* vosrt_memory_set_soft_masks, resized from planes. */
VOSRT_API vosrt_status vosrt_cuda_memory_set_planes(vosrt_memory *memory, const float *planes, int32_t height, int32_t width);
/* Have labels made of planes in place of the newest frame's soft masks, until the memory changes; NULL = of these again. The planes stay
 * where they are and are the caller's. */
VOSRT_API vosrt_status vosrt_cuda_memory_show(vosrt_memory *memory, const float *planes, int32_t height, int32_t width);
/* Draw the marked objects of `mask`, u8 [mask_height, mask_width] in host memory, into planes: they are as marked, and the others share what
 * the marks leave. Waits. */
VOSRT_API vosrt_status vosrt_cuda_memory_mark_planes(vosrt_memory *memory, float *planes, int32_t height, int32_t width,
                                                     const uint8_t *mask, int32_t mask_height, int32_t mask_width, int64_t stride);

/* The stages of a frame's work. */
typedef enum vosrt_cuda_stage {
    VOSRT_CUDA_STAGE_ADVANCE = 0,
    VOSRT_CUDA_STAGE_STORE = 1,
    VOSRT_CUDA_STAGE_MATCH = 2,
    VOSRT_CUDA_STAGE_READ_OUT = 3,
    VOSRT_CUDA_STAGE_LABELS = 4,
    VOSRT_CUDA_STAGES = 5
} vosrt_cuda_stage;
/* vosrt_cuda_memory_frame, but not recorded and waited for: ms[VOSRT_CUDA_STAGES] are the milliseconds of its stages, by CUDA
 * events. For measuring kernels; a whole frame takes longer than in a recorded graph. */
VOSRT_API vosrt_status vosrt_cuda_memory_time_frame(vosrt_memory *memory, const vosrt_cuda_frame *frame, float *ms);
/* How many CUDA graphs the memory recorded so far. */
VOSRT_API vosrt_status vosrt_cuda_memory_recordings(const vosrt_memory *memory, int64_t *count);

#ifdef __cplusplus
}
#endif
#endif /* VOSRT_CUDA_H */
