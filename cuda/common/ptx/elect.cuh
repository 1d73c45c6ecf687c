#pragma once

#include "cuda/common/ptx/tma.cuh"

/// What only some threads of a warp do, without a branch, and waits that do not block.
namespace mmx::cuda::ptx {

/// True in one thread of a warp, all of whose threads call it. Why not compare thread numbers: the compiler
/// knows that this is one thread, and asks for boxes without a loop over the threads of the warp.
__device__ __forceinline__ bool elect_one() {
    uint32_t is_elected = 0;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xFFFFFFFF;\n@p mov.u32 %0, 1;\n}" : "+r"(is_elected));
    return is_elected != 0;
}

/// 16 bytes to global memory, if `wanted`. Why not a branch: several such stores follow each other closely.
__device__ __forceinline__ void store_16_if(bool wanted, void* to, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n@p st.global.v4.b32 [%0], {%1, %2, %3, %4};\n}" ::"l"(to),
        "r"(a), "r"(b), "r"(c), "r"(d), "r"(static_cast<int>(wanted))
        : "memory");
}

/// Whether a wait would be over; 0 or 1. What follows and does not need the answer runs meanwhile.
__device__ __forceinline__ uint32_t barrier_try(uint64_t& barrier, int parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(smem_address(&barrier)), "r"(parity)
        : "memory");
    return done;
}

}  // namespace mmx::cuda::ptx
