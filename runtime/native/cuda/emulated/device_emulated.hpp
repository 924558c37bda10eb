// The emulated queue: work is done at once, or kept while somebody records; or a test's own CUDA runtime says when.
#pragma once

#include <cstddef>
#include <functional>

#include "../device.hpp"
#include "vosrt.h"

namespace vosrt::cuda::emulated {

void enqueue(Queue &queue, std::function<void()> work);

// A CUDA runtime of the host program, such as the one that its network runs on: streams, events and graphs are its own, and
// work is done when it calls vosrt_cuda_emulated_run. Functions that give a status give 0 where they succeed.
struct Runtime {
    void (*submit)(void *stream, void *work);  // keeps it until vosrt_cuda_emulated_forget
    int (*synchronise)(void *stream);
    int (*is_capturing)(void *stream);
    int (*begin_capture)(void *stream);
    int (*end_capture)(void *stream);  // a graph, or 0
    int (*launch)(int graph, void *stream);
    void (*destroy)(int graph);
    int (*record)(void *event, void *stream);
    int (*wait_for)(void *stream, void *event);
    int (*wait)(void *event);
    int (*allocated)(void *memory, size_t bytes, int pinned);  // may be refused
    void (*freed)(void *memory);                               // waits for work that uses it
};

}  // namespace vosrt::cuda::emulated

extern "C" {
VOSRT_API void vosrt_cuda_emulated_use(const vosrt::cuda::emulated::Runtime *runtime);  // nullptr = none
VOSRT_API void vosrt_cuda_emulated_run(void *work);
VOSRT_API void vosrt_cuda_emulated_forget(void *work);
}
