#pragma once

#include "cpp/core/params/fp8.h"
#include "cuda/common/vec.cuh"

/// Codes of neighbouring columns, as Fp8QuantizeParams says.
namespace mmx::cuda {

/// Largest magnitude of a group of kFp8Group columns, of which each lane of a warp or half warp has kRun in
/// order.
template <int kRun>
__device__ __forceinline__ float group_amax(const float (&values)[kRun]) {
    constexpr int kLanes = static_cast<int>(kFp8Group) / kRun;
    static_assert(kLanes == 16 || kLanes == 32);
    const unsigned lanes = kLanes == 32 ? 0xFFFFFFFFu : 0xFFFFu << (threadIdx.x & 16);
    float most = kFp8LeastAmax;
#pragma unroll
    for (int j = 0; j < kRun; ++j) most = fmaxf(most, fabsf(values[j]));
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2)
        most = fmaxf(most, __shfl_xor_sync(lanes, most, offset));
    return most;
}

template <int kRun>
__device__ __forceinline__ void quantize_group(e4m3* codes, float* scale, const float (&values)[kRun],
                                               bool packable) {
    const float most = group_amax(values);
    float scaled[kRun];
    const float factor = kFp8Max / most;
#pragma unroll
    for (int j = 0; j < kRun; ++j) scaled[j] = values[j] * factor;
    store_run(codes, scaled, kRun, packable);
    if (threadIdx.x % (kFp8Group / kRun) == 0) *scale = most / kFp8Max;
}

}  // namespace mmx::cuda
