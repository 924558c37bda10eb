// For tests alone: the calls of the CUDA runtime that vosrt_tensorrt.hpp makes, on a GPU that is the host's memory.
#pragma once

#include <cstdlib>
#include <cstring>

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidDevice = 101
};
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2
};
using cudaStream_t = struct CUstream_st *;
inline cudaStream_t *cudaStreamOfWork = nullptr;  // for tests: where to note the stream of a network's run

inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
enum : unsigned {
    cudaStreamNonBlocking = 1
};
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    if (flags != cudaStreamNonBlocking) return cudaErrorInvalidValue;  // a blocking stream waits for the default one
    *stream = static_cast<cudaStream_t>(std::malloc(1));
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    std::free(stream);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline int allocations = 0;  // for tests to count
inline cudaError_t cudaMalloc(void **memory, size_t bytes) {
    ++allocations;
    *memory = std::malloc(bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *memory) {
    std::free(memory);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
inline const char *cudaGetErrorString(cudaError_t) { return "invalid device ordinal"; }
