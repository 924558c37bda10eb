// The emulated CUDA runtime: work is done at once, or kept while somebody captures it; or a test's own runtime says when.
#pragma once

#include <cstddef>
#include <functional>

#include "cuda_runtime_api.h"
#include "vosrt.h"

namespace vosrt::cuda::emulated {

// A kernel's launch. Its shared memory may not exceed what its attribute allows, as on a GPU.
void launch(cudaStream_t stream, size_t shared_bytes, size_t allowed_shared_bytes, std::function<void()> work);

// A CUDA runtime of the host program, such as the one that its network runs on: streams, events and graphs are its own, and
// work is done when it calls vosrt_cuda_emulated_run. Functions that give a status give a cudaError_t.
struct Runtime {
    int (*submit)(void *stream, void *work);  // keeps it until vosrt_cuda_emulated_forget
    int (*synchronise)(void *stream);
    int (*is_capturing)(void *stream);
    int (*begin_capture)(void *stream, int mode);
    int (*end_capture)(void *stream);  // a graph, or 0
    int (*launch)(int graph, void *stream);
    void (*destroy)(int graph);
    int (*record)(void *event, void *stream);
    int (*wait_for)(void *stream, void *event);
    int (*wait)(void *event);
    int (*allocated)(void *memory, size_t bytes, int pinned);  // may be refused
    int (*freed)(void *memory);                                // waits for work that uses it
};

}  // namespace vosrt::cuda::emulated

extern "C" {
VOSRT_API void vosrt_cuda_emulated_use(const vosrt::cuda::emulated::Runtime *runtime);  // nullptr = none
VOSRT_API void vosrt_cuda_emulated_run(void *work);
VOSRT_API void vosrt_cuda_emulated_forget(void *work);
// The next call of a function of the CUDA runtime fails; with nullptr, nothing fails any more and the GPU is as new.
VOSRT_API void vosrt_cuda_emulated_fail(const char *function, int status);
// GPUs, bit by bit, on which a context was made since the last call.
VOSRT_API unsigned vosrt_cuda_emulated_contexts(void);
}
