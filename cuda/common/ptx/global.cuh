#pragma once

#include <cstdint>

#include "cuda/common/ptx/cache_policy.h"

/// Data handed from block to block, or from kernel to kernel, through global memory.
namespace mmx::cuda::ptx {

/// Adds once everything that this thread wrote, or saw before a barrier, is visible to who acquires the sum.
__device__ __forceinline__ void add_release(int32_t* address, int32_t value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// The next number of a counter, which does not wait for it as adding 1 would: the assembler then adds once
/// for all threads of a warp that do, and shares the numbers out.
__device__ __forceinline__ int32_t draw_number(int32_t* counter) {
    int32_t number;
    asm volatile("atom.global.inc.u32 %0, [%1], 0x7fffffff;" : "=r"(number) : "l"(counter) : "memory");
    return number;
}

__device__ __forceinline__ int32_t load_acquire(const int32_t* address) {
    int32_t value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

/// Stores 16 bytes, kOffset behind `address`, that the L2 should give up first.
template <int kOffset>
__device__ __forceinline__ void store_streamed(void* address, uint32_t a, uint32_t b, uint32_t c,
                                               uint32_t d) {
    asm volatile("st.global.L2::cache_hint.v4.b32 [%0 + %1], {%2, %3, %4, %5}, %6;" ::"l"(address),
                 "n"(kOffset), "r"(a), "r"(b), "r"(c), "r"(d), "l"(kEvictFirst)
                 : "memory");
}

/// Between plain accesses to global memory and those of the copy engine to the same data.
__device__ __forceinline__ void fence_async_proxy_global() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace mmx::cuda::ptx
