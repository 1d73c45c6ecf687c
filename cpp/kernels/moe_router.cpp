#include <limits>

#include "cpp/kernels/launchers.h"
#include "cpp/kernels/row_gemm.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

/// Inserts experts in id order into a list of the best `topk`, best first; an equal score stays behind the
/// lower id. A NaN ranks as -inf.
void choose(int32_t* ids, const float* s, const float* bias, int64_t num_experts, int64_t topk, float* best) {
    int64_t count = 0;
    for (int64_t e = 0; e < num_experts; ++e) {
        float score = bias ? s[e] + bias[e] : s[e];
        if (std::isnan(score)) score = -std::numeric_limits<float>::infinity();
        if (count == topk && !(score > best[topk - 1])) continue;
        int64_t i = count < topk ? count++ : topk - 1;
        for (; i > 0 && score > best[i - 1]; --i) {
            best[i] = best[i - 1];
            ids[i] = ids[i - 1];
        }
        best[i] = score;
        ids[i] = static_cast<int32_t>(e);
    }
}

}  // namespace

void moe_router(const MoeRouterParams& p, Stream) {
    const int64_t stride = align_up(p.num_experts, kLanes);
    const std::unique_ptr<float[]> s(new float[static_cast<size_t>(p.num_tokens * stride)]);
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const int32_t offsets[2] = {0, static_cast<int32_t>(p.num_tokens)};
        const GroupedRows<T, float> x(static_cast<const T*>(p.x), p.x_stride, p.num_tokens, p.hidden, offsets,
                                      1, [](int64_t row) { return row; });
        const WeightRows<float> weight{p.gate_weight, p.hidden, nullptr, 0};
        run_tasks(gemm_tasks(offsets, 1, p.num_experts), p.num_tokens * p.num_experts * p.hidden,
                  [&](const GemmTask& task) {
                      alignas(64) float c[kBlockM * kBlockN];
                      x.multiply(c, task, weight, task.n0, task.n1);
                      for (int64_t i = 0; i < task.m1 - task.m0; ++i)
                          for (int64_t j = 0; j < task.n1 - task.n0; j += kWidth)
                              store_some(s.get() + (task.m0 + i) * stride + task.n0 + j,
                                         sigmoid(load(c + i * kBlockN + j)), task.n1 - task.n0 - j);
                  });
    });
    parallel_for(p.num_tokens, 64, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<float[]> best(new float[static_cast<size_t>(p.topk)]);
        for (int64_t token = begin; token < end; ++token) {
            int32_t* ids = p.topk_ids + token * (p.topk + p.num_shared);
            float* weights = p.topk_weights + token * (p.topk + p.num_shared);
            const float* scores = s.get() + token * stride;
            choose(ids, scores, p.bias, p.num_experts, p.topk, best.get());
            float total = 0;
            for (int64_t k = 0; k < p.topk; ++k) total += scores[ids[k]];
            // Scores so low that all of them are 0 in fp32: the experts add nothing rather than 0 / 0.
            for (int64_t k = 0; k < p.topk; ++k)
                weights[k] = total == 0 ? 0 : p.routed_scale * scores[ids[k]] / total;
            for (int64_t i = 0; i < p.num_shared; ++i) {
                ids[p.topk + i] = static_cast<int32_t>(p.num_experts + i);
                weights[p.topk + i] = 1.0f;
            }
        }
    });
}

void moe_router_plan(const MoeRouterPlanParams& p, Stream stream) {
    if (p.router.num_tokens > 0) moe_router(p.router, stream);
    moe_plan(p.plan, stream);
}

}  // namespace mmx::cpu::MMX_CPU_ISA
