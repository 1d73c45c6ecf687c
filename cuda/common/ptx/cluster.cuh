#pragma once

#include <cstdint>

/// Blocks of one cluster: their barrier, loads from and stores into each other's shared memory.
namespace mmx::cuda::ptx {

/// Every thread of every block. Behind the wait, blocks of the cluster run and their barriers, made before
/// they arrived and fenced by `barrier_init_done`, may be used; other writes are not ordered.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// The address that `smem_address` of this block has in block `rank` of the cluster.
__device__ __forceinline__ uint32_t cluster_address(uint32_t smem_address, int rank) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(smem_address), "r"(rank));
    return address;
}

__device__ __forceinline__ float load_remote(uint32_t address) {
    float x;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}

/// Stores that complete on a barrier of the block that receives them; both are cluster addresses.
__device__ __forceinline__ void store_remote(uint32_t address, int x, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.s32 [%0], %1, [%2];" ::"r"(address),
        "r"(x), "r"(barrier)
        : "memory");
}
__device__ __forceinline__ void store_remote(uint32_t address, float x, float y, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            address),
        "f"(x), "f"(y), "r"(barrier)
        : "memory");
}
__device__ __forceinline__ void store_remote(uint32_t address, float x, float y, float z, float w,
                                             uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::
            "r"(address),
        "f"(x), "f"(y), "f"(z), "f"(w), "r"(barrier)
        : "memory");
}

}  // namespace mmx::cuda::ptx
