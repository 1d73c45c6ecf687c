#pragma once

#include <cstdint>

#include "cuda/common/ptx/global.cuh"

/// Rows of x on their way into plan order while the products of gate and up run, whose copy engine can fetch
/// rows that lie in order only.
namespace mmx::cuda::sm90 {

template <class T>
struct RowCopies {
    const T* from;    // [num_tokens, k], rows of from_stride
    T* to;            // [num_rows, k]
    int32_t* counts;  // [num_experts] rows that have arrived
    int64_t from_stride;
};

/// By the three warps that have nothing else to do; copy(from, to, lane) does a row of 16-byte pieces. Every
/// block copies its share of each expert's rows, but only so far ahead of what it multiplies, shared.expert,
/// that they are still in the L2 when they are asked for. Blocks take the experts in the same order, so those
/// that are behind never wait for those that are ahead.
template <class T, class Job, class Shared, class F>
__device__ __forceinline__ void copy_rows(const Job& job, const RowCopies<T>& copies, Shared& shared,
                                          int pieces, F&& copy) {
    constexpr int kWarps = 3, kAhead = 1536;  // rows behind those of the expert multiplied now (measured)
    const int lane_idx = static_cast<int>(threadIdx.x) % 32,
              warp_idx = static_cast<int>(threadIdx.x) / 32 - 1;
    const int num_rows = shared.list.first_row[job.num_experts];
    const volatile int& reached = shared.expert;
    int expert = 0;
    for (int m = static_cast<int>(blockIdx.x) * kWarps + warp_idx; m < num_rows;
         m += static_cast<int>(gridDim.x) * kWarps) {
        while (shared.list.first_row[expert + 1] <= m) ++expert;
        while (shared.list.first_row[min(reached + 1, job.num_experts)] + kAhead < m) __nanosleep(500);
        copy(reinterpret_cast<const uint4*>(copies.from + job.sorted_rows[m] / job.topk * copies.from_stride),
             reinterpret_cast<uint4*>(copies.to) + static_cast<int64_t>(m) * pieces, lane_idx);
        ptx::fence_async_proxy_global();
        __syncwarp();
        if (lane_idx == 0) ptx::add_release(copies.counts + expert, 1);
    }
}

/// Until `count` of an expert's rows have arrived; what follows may ask the copy engine for them.
__device__ __forceinline__ void wait_for_rows(const int32_t* arrived, int count) {
    while (ptx::load_acquire(arrived) < count) {
    }
    ptx::fence_async_proxy_global();
}

}  // namespace mmx::cuda::sm90
