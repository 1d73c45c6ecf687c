#include <climits>

#include "cuda/common/chain.h"
#include "cuda/common/gated_act.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/kernels/moe/choose.h"
#include "cuda/kernels/moe/sm90.h"

namespace mmx::cuda::sm90 {

namespace {

constexpr int kPerLane = static_cast<int>(kRouterMaxExperts) / 32;
constexpr int kFewRows = 32;
constexpr int kWarps = 4, kPlanThreads = static_cast<int>(kRouterPlanExperts);

/// Order of unsigned numbers = order of floats, -0 and 0 being equal; a NaN ranks as -inf. Never 0.
__device__ __forceinline__ uint32_t rank_of(float x) {
    const uint32_t bits = __float_as_uint(isnan(x) ? -INFINITY : x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The warp's choice for one token: scores from the sums, then the best of those not chosen yet, `topk`
/// times. `ids`: a second copy of the token's ids, or null.
template <int kSums>
__device__ __forceinline__ void choose(const MoeRouterParams& p, const float* sums,
                                       const float (&bias)[kPerLane], int64_t token, int* ids) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    const int num_experts = static_cast<int>(p.num_experts), topk = static_cast<int>(p.topk);
    const int64_t step = p.num_tokens * p.num_experts;
    float part[kPerLane][kSums];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
        // Why clamp: so that all loads are on their way before the first is used.
        const float* from = sums + token * num_experts + min(i * 32 + lane_idx, num_experts - 1);
#pragma unroll
        for (int s = 0; s < kSums; ++s) part[i][s] = from[s * step];
    }
    float score[kPerLane];
    uint32_t rank[kPerLane];  // 0: chosen, or no expert
    int place[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
        float half[2] = {};
#pragma unroll
        for (int s = 0; s < kSums; ++s) half[s / (kSums / 2)] += part[i][s];
        score[i] = sigmoid(half[0] + half[1]);
        rank[i] = i * 32 + lane_idx < num_experts ? rank_of(score[i] + bias[i]) : 0;
        place[i] = -1;
    }
    float total = 0;
    for (int k = 0; k < topk; ++k) {
        // Why from behind: among equals the lowest id is first.
        int mine = kPerLane - 1;
        uint32_t highest = rank[kPerLane - 1];
#pragma unroll
        for (int i = kPerLane - 2; i >= 0; --i)
            if (rank[i] >= highest) mine = i, highest = rank[i];
        const uint32_t best = __reduce_max_sync(kFull, highest);
        const int id = static_cast<int>(__reduce_min_sync(
            kFull, highest == best ? static_cast<unsigned>(mine * 32 + lane_idx) : UINT_MAX));
        float chosen = 0;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i)
            if (i * 32 + lane_idx == id) rank[i] = 0, place[i] = k, chosen = score[i];
        total += __shfl_sync(kFull, chosen, id % 32);
    }
    const int64_t first = token * (topk + p.num_shared);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
        if (place[i] < 0) continue;
        p.topk_ids[first + place[i]] = i * 32 + lane_idx;
        if (ids) ids[place[i]] = i * 32 + lane_idx;
        // Scores so low that all of them are 0 in fp32: the experts add nothing rather than 0 / 0.
        p.topk_weights[first + place[i]] = total == 0 ? 0.0f : p.routed_scale * score[i] / total;
    }
    for (int i = lane_idx; i < p.num_shared; i += 32) {
        p.topk_ids[first + topk + i] = num_experts + i;
        if (ids) ids[topk + i] = num_experts + i;
        p.topk_weights[first + topk + i] = 1.0f;
    }
}

__device__ __forceinline__ void load_bias(float (&bias)[kPerLane], const MoeRouterParams& p) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
        const int e = i * 32 + static_cast<int>(threadIdx.x) % 32;
        bias[i] = p.bias && e < p.num_experts ? p.bias[e] : 0.0f;
    }
}

/// One warp per token.
template <int kSums>
__global__ void __launch_bounds__(kWarps * 32)
    router_choose_kernel(const __grid_constant__ MoeRouterParams p, const float* sums) {
    const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    float bias[kPerLane];
    load_bias(bias, p);
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    if (token >= p.num_tokens) return;
    choose<kSums>(p, sums, bias, token, nullptr);
}

/// One block for all tokens, which then plans: ids, places among the rows of their expert, rows of each
/// expert.
__global__ void __launch_bounds__(kPlanThreads)
    router_choose_plan_kernel(const __grid_constant__ MoeRouterParams p,
                              const __grid_constant__ MoePlanParams plan, const float* sums) {
    __shared__ int ids[kRouterPlanRows], places[kRouterPlanRows], counts[kPlanThreads];
    __shared__ int warp_totals[kPlanThreads / 32];
    const int tid = static_cast<int>(threadIdx.x), lane_idx = tid % 32, warp = tid / 32;
    const int num_rows = static_cast<int>(plan.num_tokens * plan.topk);
    const int first = static_cast<int>(plan.first_expert), count = static_cast<int>(plan.num_local_experts);
    const auto local = [&](int row) {
        const int expert = row < num_rows ? ids[row] - first : -1;
        return expert < count ? expert : -1;
    };
    float bias[kPerLane];
    load_bias(bias, p);
    counts[tid] = 0;
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    for (int64_t token = warp; token < p.num_tokens; token += kPlanThreads / 32)
        choose<2>(p, sums, bias, token, ids + token * plan.topk);
    __syncthreads();
    // Of few rows every thread looks at all.
    if (num_rows <= kFewRows) {
        const int expert = tid < num_rows ? local(tid) : -1;
        int offset = 0, position = 0;
#pragma unroll 8
        for (int row = 0; row < num_rows; ++row) {
            const int other = local(row);
            offset += other >= 0 && other < tid;
            position += other >= 0 && (other < expert || (other == expert && row < tid));
        }
        if (tid <= count) plan.expert_offsets[tid] = offset;
        if (tid < num_rows) plan.row_positions[tid] = expert < 0 ? -1 : position;
        if (expert >= 0) plan.sorted_rows[position] = tid;
        return;
    }
    // One warp takes the rows in order, so that the rows of an expert keep theirs.
    for (int row = lane_idx; warp == 0 && row < align_up(num_rows, 32); row += 32) {
        const int expert = local(row);
        const unsigned same = __match_any_sync(kFull, expert);
        const int before = __popc(same & ((1u << lane_idx) - 1)), so_far = expert < 0 ? 0 : counts[expert];
        __syncwarp();
        if (expert >= 0) places[row] = so_far + before;
        if (expert >= 0 && before == 0) counts[expert] = so_far + __popc(same);
        __syncwarp();
    }
    __syncthreads();
    const int inclusive = warp_prefix_sum(counts[tid]);
    if (lane_idx == 31) warp_totals[warp] = inclusive;
    __syncthreads();
    int offset = inclusive - counts[tid];
    for (int w = 0; w < warp; ++w) offset += warp_totals[w];
    if (tid <= count) plan.expert_offsets[tid] = offset;
    counts[tid] = offset;
    __syncthreads();
    for (int row = tid; row < num_rows; row += kPlanThreads) {
        const int expert = local(row), position = expert < 0 ? -1 : counts[expert] + places[row];
        plan.row_positions[row] = position;
        if (position >= 0) plan.sorted_rows[position] = row;
    }
}

}  // namespace

void router_choose(const MoeRouterParams& p, const float* sums, int num_sums, Stream stream) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.num_tokens, int64_t{kWarps})));
    const LaunchChain launch{"moe_router", grid, kWarps * 32, 0, stream};
    if (num_sums == 2)
        launch(router_choose_kernel<2>, p, sums);
    else
        launch(router_choose_kernel<kRouterSplits>, p, sums);
}

void router_choose_plan(const MoeRouterParams& p, const MoePlanParams& plan, const float* sums,
                        Stream stream) {
    LaunchChain{"moe_router_plan", 1, kPlanThreads, 0, stream}(router_choose_plan_kernel, p, plan, sums);
}

}  // namespace mmx::cuda::sm90
