#pragma once

#include <cstdint>

/// 4 or 16 bytes from and to shared memory by address, as `smem_address` gives it.
namespace mmx::cuda::ptx {

__device__ __forceinline__ int load_shared(uint32_t smem_address) {
    int x;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(x) : "r"(smem_address) : "memory");
    return x;
}

__device__ __forceinline__ void load_shared(uint32_t (&x)[4], uint32_t smem_address) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(smem_address)
                 : "memory");
}

__device__ __forceinline__ void store_shared(uint32_t smem_address, uint32_t a, uint32_t b, uint32_t c,
                                             uint32_t d) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(smem_address), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

}  // namespace mmx::cuda::ptx
