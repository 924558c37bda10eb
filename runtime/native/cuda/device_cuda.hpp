// Failures of the CUDA runtime as errors that name the call.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "error.hpp"

namespace vosrt::cuda {

[[noreturn]] inline void fail_cuda(cudaError_t status, const std::string &call) {
    const vosrt_status code = status == cudaErrorMemoryAllocation ? VOSRT_OUT_OF_MEMORY
                              : status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
                                      status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDevice
                                  ? VOSRT_UNSUPPORTED
                                  : VOSRT_INTERNAL;
    throw Error(code, "CUDA failed in " + call + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

inline void check_cuda(cudaError_t status, const char *call) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // what is not sticky must not be reported by the next call
    fail_cuda(status, call);
}

}  // namespace vosrt::cuda
