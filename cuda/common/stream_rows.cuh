#pragma once

#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/vec.cuh"

/// Products of e4m3 weight rows that are read once with a few bf16 rows of x.
///
/// Weights are the A operand of mma.m16n8k16 (16 rows), rows of x the B operand (8 columns). A dot product
/// does not care about the order of k, so a lane's fragments of neighbouring k16 steps are neighbouring
/// elements of its row: each lane loads 16 contiguous bytes straight into fragments, and x is permuted the
/// same way by indexing it alike.
namespace mmx::cuda {

/// k elements that a warp takes at a time: 128 bytes of each weight row, one scale block.
inline constexpr int kStreamChunk = 128;

/// 16 bytes of weights as bf16 pairs, 4 fragments of a k16 step.
struct StreamFragments {
    uint32_t pairs[8];
    __device__ explicit StreamFragments(uint4 v) {
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            // e4m3 -> half -> bf16 is exact: 4 significant bits, exponents -9 to 8.
            const auto fp8 = static_cast<__nv_fp8x2_storage_t>(words[i / 2] >> (16 * (i % 2)));
            const __half2 half(__nv_cvt_fp8x2_to_halfraw2(fp8, __NV_E4M3));
            const float2 wide = __half22float2(half);
            pairs[i] = ptx::pack_bf16(wide.x, wide.y);
        }
    }
};

/// acc += weights . x over the chunks first, first + step, ... of one warp.
///
/// `low` and `high`: this lane's weight rows g and g + 8 of the 16 (g = lane / 4), at k = 0. `x`: this lane's
/// row of x (row g) at k = 0, or null. `scale_low`, `scale_high`: one factor per chunk. acc holds rows g and
/// g + 8 of the columns 2t, 2t + 1 (t = lane % 4) as mma.m16n8k16 does.
template <int kUnroll>
__device__ __forceinline__ void stream_rows(float (&acc)[4], const e4m3* low, const e4m3* high, const bf16* x,
                                            const float* scale_low, const float* scale_high, int num_chunks,
                                            int first, int step) {
    constexpr int kRun = 16, kHalf = kStreamChunk / 2;
    const int offset = static_cast<int>(threadIdx.x) % 4 * kRun;
    for (int base = first; base < num_chunks; base += step * kUnroll) {
        uint4 rows[kUnroll][2][2];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int chunk = base + u * step;
            if (chunk >= num_chunks) break;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t k = static_cast<int64_t>(chunk) * kStreamChunk + half * kHalf + offset;
                rows[u][half][0] = ptx::load_once(low + k);
                rows[u][half][1] = ptx::load_once(high + k);
            }
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int chunk = base + u * step;
            if (chunk >= num_chunks) break;
            float sum[4] = {};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const StreamFragments a(rows[u][half][0]), b(rows[u][half][1]);
                const int64_t k = static_cast<int64_t>(chunk) * kStreamChunk + half * kHalf + offset;
#pragma unroll
                for (int pair = 0; pair < 2; ++pair) {
                    uint4 v = make_uint4(0, 0, 0, 0);
                    if (x) v = *reinterpret_cast<const uint4*>(x + k + 8 * pair);
                    const uint32_t* p = a.pairs + 4 * pair;
                    const uint32_t* q = b.pairs + 4 * pair;
                    ptx::mma_16x8x16(sum, p[0], q[0], p[1], q[1], v.x, v.y);
                    ptx::mma_16x8x16(sum, p[2], q[2], p[3], q[3], v.z, v.w);
                }
            }
            const float factor_low = scale_low[chunk], factor_high = scale_high[chunk];
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[i] += sum[i] * (i < 2 ? factor_low : factor_high);
        }
    }
}

}  // namespace mmx::cuda
