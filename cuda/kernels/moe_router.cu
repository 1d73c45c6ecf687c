#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/gated_act.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/moe/choose.h"
#include "cuda/kernels/moe/rank.cuh"
#include "cuda/kernels/moe/sm90.h"

namespace mmx::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kRun = 4;

/// scores[token, expert] = sigmoid(x . gate_weight); one warp per kTokens x kExperts of them. A dot product
/// is summed in runs of kRun per lane, then over the lanes, whatever the tile: a token's scores do not depend
/// on its batch.
template <class T, int kTokens, int kExperts>
__global__ void __launch_bounds__(kWarps * 32)
    router_scores_kernel(MoeRouterParams p, float* scores, bool packable) {
    const int lane = threadIdx.x % 32;
    const int64_t token0 = static_cast<int64_t>(blockIdx.x) * kTokens;
    const int64_t expert0 = (static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / 32) * kExperts;
    if (expert0 >= p.num_experts) return;
    float acc[kTokens][kExperts] = {};
#pragma unroll 4
    for (int64_t i = lane * kRun; i < p.hidden; i += 32 * kRun) {
        float x[kTokens][kRun], w[kExperts][kRun];
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            // Why clamp: a tile over the edge computes the last row again and drops it below.
            const int64_t token = min(token0 + t, p.num_tokens - 1);
            load_run(x[t], static_cast<const T*>(p.x) + token * p.x_stride + i, p.hidden - i, packable);
        }
#pragma unroll
        for (int e = 0; e < kExperts; ++e) {
            const int64_t expert = min(expert0 + e, p.num_experts - 1);
            load_run(w[e], p.gate_weight + expert * p.hidden + i, p.hidden - i, packable);
        }
#pragma unroll
        for (int t = 0; t < kTokens; ++t)
#pragma unroll
            for (int e = 0; e < kExperts; ++e)
#pragma unroll
                for (int j = 0; j < kRun; ++j) acc[t][e] = fmaf(x[t][j], w[e][j], acc[t][e]);
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
#pragma unroll
        for (int e = 0; e < kExperts; ++e) {
            const float logit = warp_sum(acc[t][e]);
            if (lane == 0 && token0 + t < p.num_tokens && expert0 + e < p.num_experts)
                scores[(token0 + t) * p.num_experts + expert0 + e] = sigmoid(logit);
        }
}

/// One warp per token: the best expert behind the last chosen one, `topk` times.
__global__ void __launch_bounds__(kWarps * 32) router_choose_kernel(MoeRouterParams p, const float* scores) {
    const int lane = threadIdx.x % 32;
    const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (token >= p.num_tokens) return;
    const float* s = scores + token * p.num_experts;
    const int64_t first = token * (p.topk + p.num_shared);
    float* weights = p.topk_weights + first;
    Rank last{INFINITY, -1};
    float total = 0;
    for (int64_t k = 0; k < p.topk; ++k) {
        Rank best{-INFINITY, static_cast<int>(p.num_experts)};
        for (int e = lane; e < p.num_experts; e += 32) {
            const float biased = p.bias ? s[e] + p.bias[e] : s[e];
            const Rank candidate = Rank::of(biased, e);
            if (last.before(candidate) && candidate.before(best)) best = candidate;
        }
        best = warp_first(best);
        total += s[best.id];
        if (lane == 0) {
            p.topk_ids[first + k] = best.id;
            weights[k] = s[best.id];
        }
        last = best;
    }
    __syncwarp();
    // Scores so low that all of them are 0 in fp32: the experts add nothing rather than 0 / 0.
    for (int64_t k = lane; k < p.topk; k += 32)
        weights[k] = total == 0 ? 0.0f : p.routed_scale * weights[k] / total;
    for (int64_t i = lane; i < p.num_shared; i += 32) {
        p.topk_ids[first + p.topk + i] = static_cast<int32_t>(p.num_experts + i);
        weights[p.topk + i] = 1.0f;
    }
}

bool runs_on_tensor_cores(const MoeRouterParams& p) {
    return sm90_router_fits(p) && is_aligned16(p.x) && is_aligned16(p.gate_weight);
}

template <class T, int kTokens, int kExperts>
void launch_scores(const MoeRouterParams& p, float* scores, Stream stream) {
    const bool packable = is_packable<T, kRun>(p.x, {p.x_stride, p.hidden}) &&
                          is_packable<float, kRun>(p.gate_weight, {p.hidden});
    const dim3 grid(static_cast<unsigned>(ceil_div(p.num_tokens, kTokens)),
                    static_cast<unsigned>(ceil_div(p.num_experts, kWarps * kExperts)));
    Launch{"moe_router", grid, kWarps * 32, 0, stream}(router_scores_kernel<T, kTokens, kExperts>, p, scores,
                                                       packable);
}

}  // namespace

int64_t moe_router_workspace(const MoeRouterParams& p) {
    const int64_t scores = p.num_tokens * p.num_experts * static_cast<int64_t>(sizeof(float));
    return sm90_router_fits(p) ? std::max(scores, make_router_plan(p).total) : scores;
}

int64_t moe_router_plan_workspace(const MoeRouterPlanParams& p) { return moe_router_workspace(p.router); }

void moe_router(const MoeRouterParams& p, Stream stream) {
    if (runs_on_tensor_cores(p)) {
        const RouterPlan plan = make_router_plan(p);
        sm90::router_sums(p, plan, stream);
        return sm90::router_choose(p, sm90::router_sums_of(p, plan), plan.num_sums, stream);
    }
    float* scores = static_cast<float*>(p.workspace);
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        if (p.num_tokens <= 8)
            launch_scores<T, 1, 1>(p, scores, stream);
        else
            launch_scores<T, 4, 4>(p, scores, stream);
    });
    const dim3 grid(static_cast<unsigned>(ceil_div(p.num_tokens, kWarps)));
    Launch{"moe_router", grid, kWarps * 32, 0, stream}(router_choose_kernel, p, scores);
}

void moe_router_plan(const MoeRouterPlanParams& p, Stream stream) {
    const bool any = p.router.num_tokens > 0;
    if (any && runs_on_tensor_cores(p.router) && router_plans(p.router, p.plan)) {
        const RouterPlan plan = make_router_plan(p.router);
        sm90::router_sums(p.router, plan, stream);
        return sm90::router_choose_plan(p.router, p.plan, sm90::router_sums_of(p.router, plan), stream);
    }
    if (any) moe_router(p.router, stream);
    moe_plan(p.plan, stream);
}

}  // namespace mmx::cuda
