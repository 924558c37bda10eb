// The kernels on the processor, thread by thread.
#include <algorithm>

#include "../kernels.hpp"
#include "device_cuda.hpp"
#include "fibers.hpp"
#include "runtime_emulated.hpp"

namespace vosrt::cuda {
namespace {

// cudaFuncAttributeMaxDynamicSharedMemorySize of a kernel: it belongs to the function, and the last value that was set counts.
template <class Body>
size_t allowed_shared = 0;

template <class Body>
void allow_shared(const Body &, size_t bytes) {
    allowed_shared<Body> = bytes;
}

template <class Body>
void launch(Queue &queue, const Body &body, int32_t blocks, int32_t jobs, size_t shared_bytes) {
    const auto work = [body, blocks, jobs, shared_bytes] {
        static uint32_t seed = 0;
        emulated::Block block(Body::kThreads, shared_bytes, ++seed);
        const emulated::Block::Body run = [&](emulated::FiberThread &thread) { body(thread); };
        for (int32_t job = 0; job < jobs; ++job)
            for (int32_t i = 0; i < blocks; ++i) block.run(run, i, blocks, job);
    };
    emulated::launch(static_cast<cudaStream_t>(queue.handle()), shared_bytes, allowed_shared<Body>, work);
    check_cuda(cudaGetLastError(), "a kernel's launch");
}

}  // namespace
}  // namespace vosrt::cuda

#include "../kernels.inl"
