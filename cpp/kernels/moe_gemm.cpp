#include "cpp/kernels/gated_act.h"
#include "cpp/kernels/row_gemm.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

/// Calls f(T{}, W{}) with the element types of activations and weights.
template <class F>
void dispatch_types(DType dtype, DType weight_dtype, F&& f) {
    dispatch_float(dtype, [&](auto t) {
        if (weight_dtype == DType::kE4M3) return f(t, e4m3{});
        MMX_CHECK(weight_dtype == dtype, "unsupported weight type ", dtype_name(weight_dtype), " with ",
                  dtype_name(dtype));
        f(t, t);
    });
}

}  // namespace

void moe_gate_up(const MoeGateUpParams& p, Stream) {
    dispatch_types(p.dtype, p.weight_dtype, [&](auto t, auto w) {
        using T = decltype(t);
        using W = decltype(w);
        const int64_t num_rows = p.expert_offsets[p.num_local_experts];
        const GroupedRows<T, W> x(static_cast<const T*>(p.x), p.x_stride, p.num_tokens, p.hidden,
                                  p.expert_offsets, p.num_local_experts,
                                  [&](int64_t row) { return p.sorted_rows[row] / p.topk; });
        const auto tasks = gemm_tasks(p.expert_offsets, p.num_local_experts, p.inter);
        run_tasks(tasks, num_rows * 2 * p.inter * p.hidden, [&](const GemmTask& task) {
            const auto weight = expert_weight<W>(p.weight, p.weight_scale, task.e, 2 * p.inter, p.hidden);
            alignas(64) float gate[kBlockM * kBlockN], up[kBlockM * kBlockN];
            x.multiply(gate, task, weight, task.n0, task.n1);
            x.multiply(up, task, weight, p.inter + task.n0, p.inter + task.n1);
            for (int64_t i = 0; i < task.m1 - task.m0; ++i)
                gated_act_row(static_cast<T*>(p.out) + (task.m0 + i) * p.inter + task.n0, gate + i * kBlockN,
                              up + i * kBlockN, task.n1 - task.n0, p.activation, p.alpha, p.limit);
        });
    });
}

void moe_down(const MoeDownParams& p, Stream) {
    dispatch_types(p.dtype, p.weight_dtype, [&](auto t, auto w) {
        using T = decltype(t);
        using W = decltype(w);
        const int64_t num_rows = p.expert_offsets[p.num_local_experts];
        const GroupedRows<T, W> x(static_cast<const T*>(p.x), p.inter, num_rows, p.inter, p.expert_offsets,
                                  p.num_local_experts, [](int64_t row) { return row; });
        const auto tasks = gemm_tasks(p.expert_offsets, p.num_local_experts, p.hidden);
        run_tasks(tasks, num_rows * p.hidden * p.inter, [&](const GemmTask& task) {
            const auto weight = expert_weight<W>(p.weight, p.weight_scale, task.e, p.hidden, p.inter);
            alignas(64) float c[kBlockM * kBlockN];
            x.multiply(c, task, weight, task.n0, task.n1);
            for (int64_t i = 0; i < task.m1 - task.m0; ++i) {
                T* out = static_cast<T*>(p.out) + (task.m0 + i) * p.hidden + task.n0;
                for (int64_t j = 0; j < task.n1 - task.n0; j += kWidth)
                    store_some(out + j, load(c + i * kBlockN + j), task.n1 - task.n0 - j);
            }
        });
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
