#pragma once

#include "cpp/core/math.h"
#include "cpp/ops/activation.h"
#include "cpp/ops/backend.h"

namespace mmx::ops {

inline MoeRouterParams moe_router_params(Matcher& m, const Tensor& topk_ids, const Tensor& topk_weights,
                                         const Tensor& x, const Tensor& gate_weight,
                                         const OptionalTensor& bias, double routed_scale,
                                         int64_t num_shared = 0) {
    m.shape("x", x, {"num_tokens", "hidden"})
        .shape("gate_weight", gate_weight, {"num_experts", "hidden"}, 2)
        .shape("topk_ids", topk_ids, {"num_tokens", "topk"}, 2)
        .shape("topk_weights", topk_weights, {"num_tokens", "topk"}, 2);
    if (bias) {
        m.shape("bias", *bias, {"num_experts"});
        m.same_dtype("bias", *bias, DType::kF32);
    }
    m.same_dtype("gate_weight", gate_weight, DType::kF32);
    m.same_dtype("topk_ids", topk_ids, DType::kI32);
    m.same_dtype("topk_weights", topk_weights, DType::kF32);
    const int64_t topk = m["topk"] - num_shared;
    m.require(num_shared >= 0, "num_shared must be at least 0, got ", num_shared);
    m.require(topk >= 1 && topk <= m["num_experts"],
              "topk must be between 1 and num_experts=", m["num_experts"], ", got ", topk);
    return {
        .topk_ids = ptr<int32_t>(topk_ids),
        .topk_weights = ptr<float>(topk_weights),
        .x = ptr(x),
        .gate_weight = ptr<float>(gate_weight),
        .bias = ptr<float>(bias),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_tokens = m["num_tokens"],
        .hidden = m["hidden"],
        .num_experts = m["num_experts"],
        .topk = topk,
        .num_shared = num_shared,
        .x_stride = x.stride(0),
        .routed_scale = static_cast<float>(routed_scale),
        .dtype = m.dtype("x", x, kFloat),
    };
}

template <class B>
int64_t moe_router_workspace(const Tensor& topk_ids, const Tensor& topk_weights, const Tensor& x,
                             const Tensor& gate_weight, const OptionalTensor& bias, double routed_scale) {
    Matcher m("moe_router");
    return B::moe_router_workspace(
        moe_router_params(m, topk_ids, topk_weights, x, gate_weight, bias, routed_scale));
}

template <class B>
void moe_router(const Tensor& topk_ids, const Tensor& topk_weights, const Tensor& x,
                const Tensor& gate_weight, const OptionalTensor& bias, const Tensor& workspace,
                double routed_scale) {
    Matcher m("moe_router");
    MoeRouterParams p = moe_router_params(m, topk_ids, topk_weights, x, gate_weight, bias, routed_scale);
    set_workspace(m, p, workspace, B::moe_router_workspace(p));
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::moe_router, p);
}

inline MoePlanParams moe_plan_params(Matcher& m, const Tensor& expert_offsets, const Tensor& sorted_rows,
                                     const Tensor& row_positions, const Tensor& topk_ids,
                                     int64_t first_expert) {
    m.shape("topk_ids", topk_ids, {"num_tokens", "topk"}, 2);
    const int64_t num_rows = m["num_tokens"] * m["topk"];
    m.shape("sorted_rows", sorted_rows, {num_rows}).shape("row_positions", row_positions, {num_rows});
    m.shape("expert_offsets", expert_offsets, {"num_local_experts + 1"});
    for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"topk_ids", topk_ids},
                                  {"sorted_rows", sorted_rows},
                                  {"row_positions", row_positions},
                                  {"expert_offsets", expert_offsets}})
        m.same_dtype(name, t, DType::kI32);
    m.require(m["num_local_experts + 1"] >= 2, "expert_offsets must have at least 2 entries");
    m.require(first_expert >= 0, "first_expert must be at least 0, got ", first_expert);
    return {
        .expert_offsets = ptr<int32_t>(expert_offsets),
        .sorted_rows = ptr<int32_t>(sorted_rows),
        .row_positions = ptr<int32_t>(row_positions),
        .topk_ids = ptr<int32_t>(topk_ids),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_tokens = m["num_tokens"],
        .topk = m["topk"],
        .first_expert = first_expert,
        .num_local_experts = m["num_local_experts + 1"] - 1,
    };
}

template <class B>
int64_t moe_plan_workspace(const Tensor& expert_offsets, const Tensor& sorted_rows,
                           const Tensor& row_positions, const Tensor& topk_ids, int64_t first_expert) {
    Matcher m("moe_plan");
    return B::moe_plan_workspace(
        moe_plan_params(m, expert_offsets, sorted_rows, row_positions, topk_ids, first_expert));
}

/// Runs for zero tokens as well: expert_offsets must be zeroed.
template <class B>
void moe_plan(const Tensor& expert_offsets, const Tensor& sorted_rows, const Tensor& row_positions,
              const Tensor& topk_ids, const Tensor& workspace, int64_t first_expert) {
    Matcher m("moe_plan");
    MoePlanParams p = moe_plan_params(m, expert_offsets, sorted_rows, row_positions, topk_ids, first_expert);
    set_workspace(m, p, workspace, B::moe_plan_workspace(p));
    B::enqueue(m.device_index(), &B::moe_plan, p);
}

inline MoeRouterPlanParams moe_router_plan_params(Matcher& m, const Tensor& topk_ids,
                                                  const Tensor& topk_weights, const Tensor& expert_offsets,
                                                  const Tensor& sorted_rows, const Tensor& row_positions,
                                                  const Tensor& x, const Tensor& gate_weight,
                                                  const OptionalTensor& bias, double routed_scale,
                                                  int64_t first_expert, int64_t num_shared) {
    const MoeRouterParams router =
        moe_router_params(m, topk_ids, topk_weights, x, gate_weight, bias, routed_scale, num_shared);
    return {.router = router,
            .plan = moe_plan_params(m, expert_offsets, sorted_rows, row_positions, topk_ids, first_expert)};
}

template <class B>
int64_t moe_router_plan_workspace(const Tensor& topk_ids, const Tensor& topk_weights,
                                  const Tensor& expert_offsets, const Tensor& sorted_rows,
                                  const Tensor& row_positions, const Tensor& x, const Tensor& gate_weight,
                                  const OptionalTensor& bias, double routed_scale, int64_t first_expert,
                                  int64_t num_shared) {
    Matcher m("moe_router_plan");
    return B::moe_router_plan_workspace(moe_router_plan_params(m, topk_ids, topk_weights, expert_offsets,
                                                               sorted_rows, row_positions, x, gate_weight,
                                                               bias, routed_scale, first_expert, num_shared));
}

/// Runs for zero tokens as well: expert_offsets must be zeroed.
template <class B>
void moe_router_plan(const Tensor& topk_ids, const Tensor& topk_weights, const Tensor& expert_offsets,
                     const Tensor& sorted_rows, const Tensor& row_positions, const Tensor& x,
                     const Tensor& gate_weight, const OptionalTensor& bias, const Tensor& workspace,
                     double routed_scale, int64_t first_expert, int64_t num_shared) {
    Matcher m("moe_router_plan");
    MoeRouterPlanParams p =
        moe_router_plan_params(m, topk_ids, topk_weights, expert_offsets, sorted_rows, row_positions, x,
                               gate_weight, bias, routed_scale, first_expert, num_shared);
    set_workspace(m, p.router, workspace, B::moe_router_plan_workspace(p));
    B::enqueue(m.device_index(), &B::moe_router_plan, p);
}

inline void check_expert_weight(Matcher& m, DType dtype, const Tensor& weight,
                                const OptionalTensor& weight_scale, int64_t rows, int64_t cols) {
    const DType weight_dtype = m.dtype("weight", weight, {dtype, DType::kE4M3});
    m.require((weight_dtype == DType::kE4M3) == weight_scale.has_value(),
              "weight_scale must be given exactly when weight is float8_e4m3fn");
    if (weight_scale) {
        m.shape("weight_scale", *weight_scale,
                {"num_local_experts", ceil_div(rows, 128), ceil_div(cols, 128)}, 3);
        m.same_dtype("weight_scale", *weight_scale, DType::kF32);
    }
}

inline MoeGateUpParams moe_gate_up_params(Matcher& m, const Tensor& out, const Tensor& x,
                                          const Tensor& weight, const OptionalTensor& weight_scale,
                                          const Tensor& expert_offsets, const Tensor& sorted_rows,
                                          int64_t activation, double alpha, double limit) {
    m.shape("x", x, {"num_tokens", "hidden"}).shape("out", out, {"num_rows", "inter"}, 2);
    m.shape("weight", weight, {"num_local_experts", 2 * m["inter"], "hidden"}, 3)
        .shape("expert_offsets", expert_offsets, {m["num_local_experts"] + 1})
        .shape("sorted_rows", sorted_rows, {"num_rows"});
    const DType dtype = m.dtype("x", x, kFloat);
    m.same_dtype("out", out, dtype);
    check_expert_weight(m, dtype, weight, weight_scale, 2 * m["inter"], m["hidden"]);
    m.same_dtype("expert_offsets", expert_offsets, DType::kI32);
    m.same_dtype("sorted_rows", sorted_rows, DType::kI32);
    const int64_t num_tokens = m["num_tokens"], num_rows = m["num_rows"];
    m.require(num_tokens == 0 ? num_rows == 0 : num_rows % num_tokens == 0, "num_rows=", num_rows,
              " must be a multiple of num_tokens=", num_tokens);
    return {
        .out = ptr(out),
        .x = ptr(x),
        .weight = ptr(weight),
        .weight_scale = ptr<float>(weight_scale),
        .expert_offsets = ptr<int32_t>(expert_offsets),
        .sorted_rows = ptr<int32_t>(sorted_rows),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_tokens = num_tokens,
        .topk = num_tokens == 0 ? 1 : num_rows / num_tokens,
        .num_local_experts = m["num_local_experts"],
        .hidden = m["hidden"],
        .inter = m["inter"],
        .x_stride = x.stride(0),
        .activation = to_activation(m, activation),
        .alpha = static_cast<float>(alpha),
        .limit = static_cast<float>(limit),
        .dtype = dtype,
        .weight_dtype = weight_scale ? DType::kE4M3 : dtype,
    };
}

template <class B>
int64_t moe_gate_up_workspace(const Tensor& out, const Tensor& x, const Tensor& weight,
                              const OptionalTensor& weight_scale, const Tensor& expert_offsets,
                              const Tensor& sorted_rows, int64_t activation, double alpha, double limit) {
    Matcher m("moe_gate_up");
    return B::moe_gate_up_workspace(moe_gate_up_params(m, out, x, weight, weight_scale, expert_offsets,
                                                       sorted_rows, activation, alpha, limit));
}

template <class B>
void moe_gate_up(const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& weight_scale,
                 const Tensor& expert_offsets, const Tensor& sorted_rows, const Tensor& workspace,
                 int64_t activation, double alpha, double limit) {
    Matcher m("moe_gate_up");
    MoeGateUpParams p = moe_gate_up_params(m, out, x, weight, weight_scale, expert_offsets, sorted_rows,
                                           activation, alpha, limit);
    set_workspace(m, p, workspace, B::moe_gate_up_workspace(p));
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::moe_gate_up, p);
}

inline MoeDownParams moe_down_params(Matcher& m, const Tensor& out, const Tensor& x, const Tensor& weight,
                                     const OptionalTensor& weight_scale, const Tensor& expert_offsets) {
    m.shape("x", x, {"num_rows", "inter"}, 2)
        .shape("out", out, {"num_rows", "hidden"}, 2)
        .shape("weight", weight, {"num_local_experts", "hidden", "inter"}, 3)
        .shape("expert_offsets", expert_offsets, {m["num_local_experts"] + 1});
    const DType dtype = m.dtype("x", x, kFloat);
    m.same_dtype("out", out, dtype);
    check_expert_weight(m, dtype, weight, weight_scale, m["hidden"], m["inter"]);
    m.same_dtype("expert_offsets", expert_offsets, DType::kI32);
    return {
        .out = ptr(out),
        .x = ptr(x),
        .weight = ptr(weight),
        .weight_scale = ptr<float>(weight_scale),
        .expert_offsets = ptr<int32_t>(expert_offsets),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_rows = m["num_rows"],
        .num_local_experts = m["num_local_experts"],
        .hidden = m["hidden"],
        .inter = m["inter"],
        .dtype = dtype,
        .weight_dtype = weight_scale ? DType::kE4M3 : dtype,
    };
}

template <class B>
int64_t moe_down_workspace(const Tensor& out, const Tensor& x, const Tensor& weight,
                           const OptionalTensor& weight_scale, const Tensor& expert_offsets) {
    Matcher m("moe_down");
    return B::moe_down_workspace(moe_down_params(m, out, x, weight, weight_scale, expert_offsets));
}

template <class B>
void moe_down(const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& weight_scale,
              const Tensor& expert_offsets, const Tensor& workspace) {
    Matcher m("moe_down");
    MoeDownParams p = moe_down_params(m, out, x, weight, weight_scale, expert_offsets);
    set_workspace(m, p, workspace, B::moe_down_workspace(p));
    if (p.num_rows == 0) return;
    B::enqueue(m.device_index(), &B::moe_down, p);
}

inline MoeCombineParams moe_combine_params(Matcher& m, const Tensor& out, const Tensor& x,
                                           const Tensor& row_positions, const Tensor& topk_weights,
                                           const OptionalTensor& shared) {
    m.shape("out", out, {"num_tokens", "hidden"})
        .shape("topk_weights", topk_weights, {"num_tokens", "topk"}, 2);
    const int64_t num_rows = m["num_tokens"] * m["topk"];
    m.shape("x", x, {num_rows, "hidden"}, 2).shape("row_positions", row_positions, {num_rows});
    const DType dtype = m.dtype("x", x, kFloat);
    m.same_dtype("out", out, dtype);
    m.same_dtype("row_positions", row_positions, DType::kI32);
    m.same_dtype("topk_weights", topk_weights, DType::kF32);
    if (shared) {
        m.shape("shared", *shared, {"num_tokens", "hidden"});
        m.same_dtype("shared", *shared, dtype);
    }
    return {
        .out = ptr(out),
        .x = ptr(x),
        .row_positions = ptr<int32_t>(row_positions),
        .topk_weights = ptr<float>(topk_weights),
        .shared = ptr(shared),
        .num_tokens = m["num_tokens"],
        .topk = m["topk"],
        .hidden = m["hidden"],
        .out_stride = out.stride(0),
        .shared_stride = shared ? shared->stride(0) : 0,
        .dtype = dtype,
    };
}

template <class B>
void moe_combine(const Tensor& out, const Tensor& x, const Tensor& row_positions, const Tensor& topk_weights,
                 const OptionalTensor& shared) {
    Matcher m("moe_combine");
    const MoeCombineParams p = moe_combine_params(m, out, x, row_positions, topk_weights, shared);
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::moe_combine, p);
}

}  // namespace mmx::ops
