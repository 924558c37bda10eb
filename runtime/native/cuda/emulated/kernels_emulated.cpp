// The kernels on the processor, thread by thread.
#include <algorithm>

#include "../kernels.hpp"
#include "device_emulated.hpp"
#include "fibers.hpp"

namespace vosrt::cuda {
namespace {

template <class Body>
void allow_shared(const Body &, size_t) {}

template <class Body>
void launch(Queue &queue, const Body &body, int32_t blocks, int32_t jobs, size_t shared_bytes) {
    emulated::enqueue(queue, [body, blocks, jobs, shared_bytes] {
        static uint32_t seed = 0;
        emulated::Block block(Body::kThreads, shared_bytes, ++seed);
        const emulated::Block::Body run = [&](emulated::FiberThread &thread) { body(thread); };
        for (int32_t job = 0; job < jobs; ++job)
            for (int32_t i = 0; i < blocks; ++i) block.run(run, i, blocks, job);
    });
}

}  // namespace
}  // namespace vosrt::cuda

#include "../kernels.inl"
