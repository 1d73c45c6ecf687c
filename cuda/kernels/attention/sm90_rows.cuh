#pragma once

#include <cstdint>

#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/types.cuh"

/// Pieces that attention kernels share: 64 rows of a warpgroup, 128 columns, in the layout of
/// ptx::Wgmma (lane 4g + t holds rows g and g + 8 of its warp).
namespace mmx::cuda::sm90 {

/// The maximum of each row over the four lanes that share it.
__device__ __forceinline__ void quad_max(float (&x)[2]) {
#pragma unroll
    for (int offset = 1; offset <= 2; offset *= 2)
#pragma unroll
        for (float& row : x) row = fmaxf(row, __shfl_xor_sync(kFull, row, offset));
}

/// Lane t of a quad gets register t of each of its lanes, in lane order.
__device__ __forceinline__ void quad_transpose(uint32_t (&r)[4], int t) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            const bool upper = (t & bit) != 0;
            const uint32_t got = __shfl_xor_sync(kFull, upper ? r[i] : r[i | bit], bit);
            (upper ? r[i] : r[i | bit]) = got;
        }
}

/// Row `row` (0 or 1: g or g + 8) of an accumulator, times `factor`, as 128 bf16 at `out`; by whole warps,
/// rows without `wanted` are left out.
__device__ __forceinline__ void store_row_bf16(bf16* out, const float (&o)[64], int row, float factor, int t,
                                               bool wanted) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        uint32_t pairs[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float* x = o + 4 * (4 * i + j) + 2 * row;
            pairs[j] = ptx::pack_bf16(x[0] * factor, x[1] * factor);
        }
        quad_transpose(pairs, t);
        if (wanted)
            *reinterpret_cast<uint4*>(out + 32 * i + 8 * t) =
                make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}

}  // namespace mmx::cuda::sm90
