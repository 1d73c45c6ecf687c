#pragma once

#include <cstdint>

/// What surrounds the tensor core products of a warpgroup (wgmma_n.cuh): operands, and when products begin
/// and end. Warp w of the group owns rows 16w to 16w + 15 of the fp32 sums; d[4j + 0, 1] are columns 8j + 2t,
/// + 1 of row g and d[4j + 2, 3] the same of row g + 8 (g = lane / 4, t = lane % 4), which is also how the A
/// operand of a k16 step lies in registers.
namespace mmx::cuda::ptx {

/// Shared-memory operand with the 128-byte swizzle of the copy engine: rows of 64 elements (128 bytes),
/// groups of 8 rows 1024 bytes apart, 1024-byte aligned. `repeat_bytes` is the distance to the next 64
/// elements of the dimension that is contiguous, used only by transposed operands; others step by 32 bytes
/// per k16 themselves.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t smem_address, uint32_t repeat_bytes = 16) {
    return static_cast<uint64_t>((smem_address & 0x3FFFF) >> 4) |
           static_cast<uint64_t>(repeat_bytes >> 4) << 16 | static_cast<uint64_t>(1024 >> 4) << 32 |
           1ull << 62;
}

/// An operand whose address is the same in all lanes. Why the shuffle: it tells the compiler so, and each
/// step is one uniform addition instead of 64-bit arithmetic per lane; the products then follow each other
/// closely.
struct UniformOperand {
    uint32_t low;

    __device__ __forceinline__ explicit UniformOperand(uint32_t smem_address, uint32_t repeat_bytes = 16)
        : low(__shfl_sync(0xFFFFFFFFu, static_cast<uint32_t>(wgmma_operand(smem_address, repeat_bytes)), 0)) {
    }
    __device__ __forceinline__ uint64_t operator+(uint32_t bytes) const {
        return static_cast<uint64_t>(1024 >> 4 | 1 << 30) << 32 | (low + (bytes >> 4));
    }
};

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Waits for all products, but not before `x` >= 0 is known: the assembler moves a wait up past arithmetic
/// that does not need it, here behind a store that never happens.
__device__ __forceinline__ void wgmma_wait_after(float x) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p st.shared.f32 [%1], %0;\n}\n"
        "wgmma.wait_group.sync.aligned 0;" ::"f"(x),
        "r"(0)
        : "memory");
}

/// After a wait: keeps the compiler from reading or changing an accumulator before that wait.
template <int kSize>
__device__ __forceinline__ void keep_registers(float (&d)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

}  // namespace mmx::cuda::ptx
