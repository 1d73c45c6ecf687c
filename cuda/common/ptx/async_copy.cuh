#pragma once

#include "cuda/common/ptx/multicast.cuh"

/// Matrices stored transposed, small background copies, e4m3 pairs, and what a pair of blocks exchanges.
namespace mmx::cuda::ptx {

/// Four 8 x 8 matrices of 16-bit elements to shared memory, each transposed: a lane has elements 2t, 2t+1 of
/// row g of each matrix (g = lane / 4, t = lane % 4); lane 8i + c gives the address of column c of matrix i,
/// 16 contiguous bytes.
__device__ __forceinline__ void store_matrices_transposed(uint32_t smem_address, const uint32_t (&m)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address),
                 "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
}

/// One such matrix; lanes 0 to 7 give the addresses.
__device__ __forceinline__ void store_matrix_transposed(uint32_t smem_address, uint32_t m) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(smem_address), "r"(m)
                 : "memory");
}

/// 4 bytes from global to shared memory in the background.
__device__ __forceinline__ void copy_async_4(uint32_t smem_address, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem_address), "l"(from) : "memory");
}

/// Two floats as a pair of e4m3, `low` in the lower byte: nearest, ties to even, beyond 448 the largest code.
__device__ __forceinline__ uint32_t pack_e4m3(float low, float high) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

/// A float at the same place of shared memory in block `rank` of the cluster.
__device__ __forceinline__ void store_at(float& place, float value, int rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "st.shared::cluster.f32 [remote], %2;\n"
        "}" ::"r"(smem_address(&place)),
        "r"(rank), "f"(value)
        : "memory");
}

/// Arrives on the barrier at the same place in block `rank`, which then sees what this thread wrote there.
__device__ __forceinline__ void barrier_publish_at(uint64_t& barrier, int rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(smem_address(&barrier)),
        "r"(rank)
        : "memory");
}

/// Sees what other blocks of the cluster published before they arrived.
__device__ __forceinline__ void barrier_wait_cluster(uint64_t& barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@done bra finished;\n"
        "bra again;\n"
        "finished:\n"
        "}" ::"r"(smem_address(&barrier)),
        "r"(parity)
        : "memory");
}

}  // namespace mmx::cuda::ptx
