#pragma once

namespace mmx::cuda {

inline constexpr unsigned kFull = 0xFFFFFFFFu;  // all lanes of a warp

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kFull, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kFull, x, offset));
    return x;
}

/// Sum of x over the lanes up to this one.
template <class T>
__device__ __forceinline__ T warp_prefix_sum(T x) {
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const T lower = __shfl_up_sync(kFull, x, offset);
        if (lane_idx >= offset) x += lower;
    }
    return x;
}

/// Sum over a block of kThreads threads, the same value in every thread. All threads must call it.
template <int kThreads>
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float partial[kThreads / 32];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) sum += partial[w];
    return sum;
}

}  // namespace mmx::cuda
