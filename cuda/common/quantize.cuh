#pragma once

#include "cpp/core/params/fp8.h"
#include "cuda/common/vec.cuh"

/// Codes of neighbouring columns, as Fp8QuantizeParams says.
namespace mmx::cuda {

/// A half warp has a group of kFp8Group columns, each of its lanes kRun of them, in order.
template <int kRun>
__device__ __forceinline__ void quantize_group(e4m3* codes, float* scale, const float (&values)[kRun],
                                               bool packable) {
    constexpr int kLanes = static_cast<int>(kFp8Group) / kRun;
    static_assert(kLanes == 16);
    float most = kFp8LeastAmax, scaled[kRun];
#pragma unroll
    for (int j = 0; j < kRun; ++j) most = fmaxf(most, fabsf(values[j]));
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xFFFFu << (threadIdx.x & 16), most, offset));
    const float factor = kFp8Max / most;
#pragma unroll
    for (int j = 0; j < kRun; ++j) scaled[j] = values[j] * factor;
    store_run(codes, scaled, kRun, packable);
    if (threadIdx.x % kLanes == 0) *scale = most / kFp8Max;
}

}  // namespace mmx::cuda
