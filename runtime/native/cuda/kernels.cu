// The kernels for GPUs.
#include "device_cuda.hpp"
#include "kernels.hpp"
#include "thread.cuh"

namespace vosrt::cuda {
namespace {

template <class Body>
__global__ void __launch_bounds__(Body::kThreads) kernel(const __grid_constant__ Body body) {
    extern __shared__ __align__(128) std::byte shared[];
    DeviceThread thread(shared);
    body(thread);
}

template <class Body>
void allow_shared(const Body &, size_t bytes) {
    check_cuda(cudaFuncSetAttribute(kernel<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
               "cudaFuncSetAttribute");
}

template <class Body>
void launch(Queue &queue, const Body &body, int32_t blocks, int32_t jobs, size_t shared_bytes) {
    kernel<<<dim3(blocks, jobs), Body::kThreads, shared_bytes, static_cast<cudaStream_t>(queue.handle())>>>(body);
    check_cuda(cudaGetLastError(), "a kernel's launch");
}

}  // namespace
}  // namespace vosrt::cuda

#include "kernels.inl"
