#pragma once

#include "cuda/common/ptx/cluster.cuh"
#include "cuda/kernels/attention/sm90_decode.cuh"

/// The blocks of a cluster share the pages of one (token, KV head): each of them owns some of its rows, and
/// the others push their parts of those rows to it.
namespace mmx::cuda::sm90 {

/// Rows of each head that a block of the cluster owns.
template <int kSplits>
inline constexpr int kOwn = (kRows + kSplits - 1) / kSplits;

/// What the blocks of the cluster push to one of them: its rows from each of them, in rank order, with their
/// maxima and sums.
template <int kSplits>
struct Parts {
    alignas(16) float rows[kSplits == 1 ? 1 : kSplits * kOwn<kSplits>][kDim];
    float2 stats[kSplits == 1 ? 1 : kSplits * kOwn<kSplits>];
};

/// By one thread, behind the barrier's init and before the cluster's barrier.
template <int kSplits>
__device__ __forceinline__ void expect_parts(uint64_t& all, int split) {
    const int rows = max(0, min(kOwn<kSplits>, kRows - split * kOwn<kSplits>));
    ptx::barrier_arrive_expect(all, rows * kSplits * static_cast<int>(kDim * sizeof(float) + sizeof(float2)));
}

/// By the workers: each row goes to the block that owns it. `o`, `max` and `sum`: of rows g and g + 8; what
/// the first warp knows of maxima and sums counts.
template <class C, int kSplits, int kTiles>
__device__ __forceinline__ void push_parts(Parts<kSplits>& parts, uint64_t& all, const float (&o)[kTiles][4],
                                           const float (&max)[2], const float (&sum)[2], int split) {
    const int tid = static_cast<int>(threadIdx.x), lane_idx = tid % 32, g = lane_idx / 4;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int head = g + 8 * row, owner = head / kOwn<kSplits>,
                  place = split * kOwn<kSplits> + head % kOwn<kSplits>;
        const auto address = [&](const void* here) {
            return ptx::cluster_address(ptx::smem_address(here), owner);
        };
        const uint32_t barrier = address(&all), received = address(parts.rows[place]);
        Pages<C>::for_each_run(o, row, tid / 32, [&](int d, auto... values) {
            ptx::store_remote(received + d * static_cast<int>(sizeof(float)), values..., barrier);
        });
        if (tid / 32 == 0 && lane_idx % 4 == 0)
            ptx::store_remote(address(&parts.stats[place]), max[row], sum[row], barrier);
    }
}

/// By the workers: the rows of this block, whose parts are summed in rank order.
template <int kSplits>
__device__ __forceinline__ void merge_parts(Parts<kSplits>& parts, uint64_t& all,
                                            const PagedAttentionParams& p, const Unit& unit, int split,
                                            float v_scale) {
    constexpr int kMine = kOwn<kSplits>;
    const int tid = static_cast<int>(threadIdx.x);
    // Four dimensions of a row are summed by so many neighbouring lanes.
    constexpr int kLanes = kSplits >= 8 ? 4 : kSplits >= 4 ? 2 : 1, kParts = (kSplits + kLanes - 1) / kLanes;
    static_assert(kMine * (kDim / 4) * kLanes <= kWorkers);
    const int item = tid / kLanes, part = tid % kLanes, own = item / (kDim / 4), d = item % (kDim / 4) * 4;
    const int head = split * kMine + own;
    ptx::barrier_wait(all, 0);
    if (own >= kMine) return;
    Piece sum = merge<kParts>([&](int i) {
        const int from = part * kParts + i, place = from * kMine + own;
        if (from >= kSplits || head >= kRows) return Piece{};
        const float2 stats = parts.stats[place];
        return Piece{*reinterpret_cast<const float4*>(&parts.rows[place][d]), stats.x, stats.y};
    });
    float best = sum.max;
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) best = fmaxf(best, __shfl_xor_sync(kFull, best, other));
    const float weight = ptx::exp2_approx(sum.max - (best == -INFINITY ? 0.0f : best));
    float sums[5] = {sum.x.x * weight, sum.x.y * weight, sum.x.z * weight, sum.x.w * weight,
                     sum.sum * weight};
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2)
#pragma unroll
        for (float& x : sums) x += __shfl_xor_sync(kFull, x, other);
    if (part != 0 || head >= unit.group) return;
    const float factor = sums[4] == 0 ? 0.0f : __fdividef(v_scale, sums[4]);
    *reinterpret_cast<uint2*>(out_of(p, unit, head) + d) =
        make_uint2(ptx::pack_bf16(sums[0] * factor, sums[1] * factor),
                   ptx::pack_bf16(sums[2] * factor, sums[3] * factor));
}

}  // namespace mmx::cuda::sm90
