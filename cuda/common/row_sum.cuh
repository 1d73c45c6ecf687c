#pragma once

#include "cuda/common/reduce.cuh"

namespace mmx::cuda {

/// Sum over a block of any number of whole warps, the same value in every thread; once per kernel. All
/// threads must call it.
__device__ __forceinline__ float row_sum(float x) {
    __shared__ float partial[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : 0.0f);
}

}  // namespace mmx::cuda
