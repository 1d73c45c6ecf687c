#pragma once

#include <cstdint>

/// Accumulators on their way to memory: matrices stored transposed, pairs of e4m3.
namespace mmx::cuda::ptx {

/// Four 8 x 8 matrices of 16-bit elements to shared memory, each transposed: a lane has elements 2t, 2t+1 of
/// row g of each matrix (g = lane / 4, t = lane % 4); lane 8i + c gives the address of column c of matrix i,
/// 16 contiguous bytes.
__device__ __forceinline__ void store_matrices_transposed(uint32_t smem_address, const uint32_t (&m)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address),
                 "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
}

/// The same not transposed: lane 8i + c gives the address of row c of matrix i.
__device__ __forceinline__ void store_matrices(uint32_t smem_address, const uint32_t (&m)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address),
                 "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
}

/// One transposed matrix; lanes 0 to 7 give the addresses.
__device__ __forceinline__ void store_matrix_transposed(uint32_t smem_address, uint32_t m) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(smem_address), "r"(m)
                 : "memory");
}

/// Two floats as a pair of e4m3, `low` in the lower byte: nearest, ties to even, beyond 448 the largest code.
__device__ __forceinline__ uint32_t pack_e4m3(float low, float high) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

}  // namespace mmx::cuda::ptx
