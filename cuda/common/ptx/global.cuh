#pragma once

#include <cstdint>

/// Data handed from block to block through global memory while a kernel runs.
namespace mmx::cuda::ptx {

/// Adds once everything that this thread wrote, or saw before a barrier, is visible to who acquires the sum.
__device__ __forceinline__ void add_release(int32_t* address, int32_t value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ int32_t load_acquire(const int32_t* address) {
    int32_t value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

/// Between plain accesses to global memory and those of the copy engine to the same data.
__device__ __forceinline__ void fence_async_proxy_global() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace mmx::cuda::ptx
