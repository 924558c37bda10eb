// A thread of a kernel, as the bodies in match_tile.hpp and frame_kernels.hpp see it. Portable from sm_80.
#pragma once

#include <cuda_bf16.h>

#include "platform.hpp"

namespace vosrt::cuda {

class DeviceThread {
   public:
    __device__ explicit DeviceThread(std::byte *shared) : shared_(shared) {}

    __device__ int32_t thread() const { return static_cast<int32_t>(threadIdx.x); }
    __device__ int32_t threads() const { return static_cast<int32_t>(blockDim.x); }
    __device__ int32_t block() const { return static_cast<int32_t>(blockIdx.x); }
    __device__ int32_t blocks() const { return static_cast<int32_t>(gridDim.x); }
    __device__ int32_t job() const { return static_cast<int32_t>(blockIdx.y); }
    __device__ std::byte *shared() const { return shared_; }

    __device__ void sync() { __syncthreads(); }
    __device__ void sync_warp() { __syncwarp(); }
    __device__ bool any(bool value) { return __any_sync(kAll, value); }
    __device__ uint64_t shuffle(uint64_t value, int32_t lane) {
        return __shfl_sync(kAll, static_cast<unsigned long long>(value), lane);
    }
    __device__ uint64_t shuffle_xor(uint64_t value, int32_t mask) {
        return __shfl_xor_sync(kAll, static_cast<unsigned long long>(value), mask);
    }
    __device__ uint32_t shuffle_xor(uint32_t value, int32_t mask) { return __shfl_xor_sync(kAll, value, mask); }
    // Bits that any thread of the warp has.
    __device__ uint32_t combine(uint32_t bits) { return __reduce_or_sync(kAll, bits); }
    __device__ void add(uint32_t *to, uint32_t value) { atomicAdd(to, value); }
    __device__ void add(uint64_t *to, uint64_t value) {
        atomicAdd(reinterpret_cast<unsigned long long *>(to), static_cast<unsigned long long>(value));
    }

    // 16 bytes from global to shared memory, or zeros; there after the wait_ahead that leaves its group out.
    __device__ void copy_ahead(std::byte *shared, const void *global, bool valid) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address(shared)), "l"(global), "r"(valid ? 16 : 0)
                     : "memory");
    }
    __device__ void commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
    // Until at most kNewest groups of this thread are under way.
    template <int kNewest>
    __device__ void wait_ahead() {
        asm volatile("cp.async.wait_group %0;\n" ::"n"(kNewest) : "memory");
    }

    // sums (16 x 8) += a (16 x 16) b (16 x 8)
    __device__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }

   private:
    static constexpr unsigned kAll = 0xffffffffu;
    __device__ static uint32_t address(const std::byte *shared) {
        return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    }

    std::byte *shared_;
};

}  // namespace vosrt::cuda
