#pragma once

#include <cstdint>

namespace mmx::cuda::ptx {

/// acc[16,8] += a[16,16] . b[16,8] of one warp, bf16 to fp32. With g = lane / 4 and t = lane % 4: a0 and a1
/// hold k = 2t, 2t+1 of rows g and g + 8, a2 and a3 the same of k + 8; b0 and b1 hold k = 2t, 2t+1 and k + 8
/// of column g; acc holds columns 2t, 2t+1 of row g, then of row g + 8.
__device__ __forceinline__ void mma_16x8x16(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// The same of f16.
__device__ __forceinline__ void mma_16x8x16_f16(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory; lane 8i + r gives the address of row r of
/// matrix i. A lane gets elements 2t, 2t+1 of row g of each matrix.
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], uint32_t smem_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(smem_address)
                 : "memory");
}

/// The same of the transposed matrices: a lane gets rows 2t, 2t+1 of column g.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&m)[4], uint32_t smem_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(smem_address)
                 : "memory");
}

/// Two floats as a pair of bf16, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/// Two floats as a pair of f16, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/// Four e4m3 codes as f16, exactly: bytes 0 and 1 in `low`, 2 and 3 in `high`.
__device__ __forceinline__ void decode_e4m3(uint32_t codes, uint32_t& low, uint32_t& high) {
    asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.rn.f16x2.e4m3x2 %0, a;\ncvt.rn.f16x2.e4m3x2 %1, b;\n}"
        : "=r"(low), "=r"(high)
        : "r"(codes));
}

inline constexpr float kLog2e = 1.4426950408889634f;  // e^x = 2^(x kLog2e)

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace mmx::cuda::ptx
