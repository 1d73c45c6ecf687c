#pragma once

#include "cuda/common/ptx/tma.cuh"

/// Blocks of one cluster, copies into several of them at once, and copies by threads that complete on a
/// barrier.
namespace mmx::cuda::ptx {

__device__ __forceinline__ int cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
}

/// Every thread of the cluster; what they wrote before, shared memory included, is visible after.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/// Arrives on the barrier that lies at the same place in block `rank` of the cluster, to give back what this
/// thread has read. Publishes nothing there: a release that reaches the cluster waits for all of memory, a
/// microsecond.
__device__ __forceinline__ void barrier_arrive_at(uint64_t& barrier, int rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(smem_address(&barrier)),
        "r"(rank)
        : "memory");
}

__device__ __forceinline__ void tma_load_5d(void* smem, const CUtensorMap& map, uint64_t& barrier, int c0,
                                            int c1, int c2, int c3, int c4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6, %7}], [%2];" ::"r"(smem_address(smem)),
        "l"(&map), "r"(smem_address(&barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
}

__device__ __forceinline__ void tma_load_5d(void* smem, const CUtensorMap& map, uint64_t& barrier, int c0,
                                            int c1, int c2, int c3, int c4, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(smem_address(smem)),
        "l"(&map), "r"(smem_address(&barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy)
        : "memory");
}

/// Into the same place of every block whose bit is set in `blocks`, each signalled on its own barrier.
__device__ __forceinline__ void tma_load_3d_multicast(void* smem, const CUtensorMap& map, uint64_t& barrier,
                                                      uint16_t blocks, int c0, int c1, int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(smem_address(smem)),
        "l"(&map), "r"(smem_address(&barrier)), "h"(blocks), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}

__device__ __forceinline__ void tma_load_5d_multicast(void* smem, const CUtensorMap& map, uint64_t& barrier,
                                                      uint16_t blocks, int c0, int c1, int c2, int c3,
                                                      int c4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(smem_address(smem)),
        "l"(&map), "r"(smem_address(&barrier)), "h"(blocks), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
}

/// 16 bytes from global to shared memory in the background, if `wanted`. Readers that are tensor cores need
/// `fence_async_proxy` between their wait and the read.
__device__ __forceinline__ void copy_async_16(uint32_t smem_address, const void* from, bool wanted = true) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %2, 0;\n"
        "@p cp.async.cg.shared.global [%0], [%1], 16;\n"
        "}" ::"r"(smem_address),
        "l"(from), "r"(static_cast<int>(wanted))
        : "memory");
}

/// The same, and zeros if not wanted.
__device__ __forceinline__ void copy_async_16_or_clear(uint32_t smem_address, const void* from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address), "l"(from),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}

/// 4 bytes likewise, through the L1: for words of a row that are asked for one after the other.
__device__ __forceinline__ void copy_async_4(uint32_t smem_address, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem_address), "l"(from) : "memory");
}

/// This thread's copies since the last call form a group; waits until at most kPending groups are on their
/// way.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// One arrival, counted among those of the barrier's init, once this thread's copies so far have landed.
__device__ __forceinline__ void barrier_arrive_after_copies(uint64_t& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_address(&barrier))
                 : "memory");
}

}  // namespace mmx::cuda::ptx
