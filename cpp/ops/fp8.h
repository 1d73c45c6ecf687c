#pragma once

#include "cpp/core/math.h"
#include "cpp/ops/activation.h"
#include "cpp/ops/backend.h"

namespace mmx::ops {

template <class B>
void fp8_quantize(const Tensor& out, const Tensor& scale, const Tensor& x) {
    Matcher m("fp8_quantize");
    m.shape("x", x, {"rows", "cols"}).shape("out", out, {"rows", "cols"}, 2);
    m.shape("scale", scale, {"rows", ceil_div(m["cols"], kFp8Group)}, 2);
    m.same_dtype("out", out, DType::kE4M3);
    m.same_dtype("scale", scale, DType::kF32);
    const Fp8QuantizeParams p{
        .out = ptr(out),
        .scale = ptr<float>(scale),
        .x = ptr(x),
        .rows = m["rows"],
        .cols = m["cols"],
        .x_stride = x.stride(0),
        .dtype = m.dtype("x", x, kFloat),
    };
    if (p.rows == 0 || p.cols == 0) return;
    B::enqueue(m.device_index(), &B::fp8_quantize, p);
}

template <class B>
void mxfp8_dequant(const Tensor& out, const Tensor& x, const Tensor& scale) {
    Matcher m("mxfp8_dequant");
    m.shape("x", x, {"rows", "cols"}, 2).shape("out", out, {"rows", "cols"}, 2);
    m.shape("scale", scale, {"rows", ceil_div(m["cols"], kMxfp8Group)}, 2);
    m.same_dtype("x", x, DType::kE4M3);
    m.same_dtype("scale", scale, DType::kU8);
    const Mxfp8DequantParams p{
        .out = ptr(out),
        .x = ptr(x),
        .scale = ptr<uint8_t>(scale),
        .rows = m["rows"],
        .cols = m["cols"],
        .dtype = m.dtype("out", out, kFloat),
    };
    if (p.rows == 0 || p.cols == 0) return;
    B::enqueue(m.device_index(), &B::mxfp8_dequant, p);
}

template <class B>
void fp8_linear(const Tensor& out, const Tensor& x, const Tensor& x_scale, const Tensor& weight,
                const Tensor& weight_scale) {
    Matcher m("fp8_linear");
    m.shape("x", x, {"m", "k"}, 2).shape("weight", weight, {"n", "k"}, 2).shape("out", out, {"m", "n"});
    const int64_t groups = ceil_div(m["k"], kFp8Group);
    m.shape("x_scale", x_scale, {"m", groups}, 2)
        .shape("weight_scale", weight_scale, {ceil_div(m["n"], kFp8Group), groups}, 2);
    m.same_dtype("x", x, DType::kE4M3);
    m.same_dtype("weight", weight, DType::kE4M3);
    m.same_dtype("x_scale", x_scale, DType::kF32);
    m.same_dtype("weight_scale", weight_scale, DType::kF32);
    const Fp8LinearParams p{
        .out = ptr(out),
        .x = ptr(x),
        .x_scale = ptr<float>(x_scale),
        .weight = ptr(weight),
        .weight_scale = ptr<float>(weight_scale),
        .m = m["m"],
        .n = m["n"],
        .k = m["k"],
        .out_stride = out.stride(0),
        .out_dtype = m.dtype("out", out, kFloat),
    };
    if (p.m == 0 || p.n == 0) return;
    B::enqueue(m.device_index(), &B::fp8_linear, p);
}

/// Rows, weights and their scales, all of which have one form.
inline void check_fp8_experts(Matcher& m, const Tensor& x, const Tensor& x_scale, const Tensor& weight,
                              const Tensor& weight_scale, const Tensor& expert_offsets, const char* x_rows,
                              int64_t rows, int64_t cols) {
    const int64_t groups = ceil_div(cols, kFp8Group);
    m.shape("weight", weight, {"num_local_experts", rows, cols}, 3)
        .shape("weight_scale", weight_scale, {"num_local_experts", ceil_div(rows, kFp8Group), groups}, 3)
        .shape("x_scale", x_scale, {x_rows, groups}, 2)
        .shape("expert_offsets", expert_offsets, {m["num_local_experts"] + 1});
    m.same_dtype("x", x, DType::kE4M3);
    m.same_dtype("weight", weight, DType::kE4M3);
    m.same_dtype("x_scale", x_scale, DType::kF32);
    m.same_dtype("weight_scale", weight_scale, DType::kF32);
    m.same_dtype("expert_offsets", expert_offsets, DType::kI32);
}

inline Fp8MoeGateUpParams fp8_moe_gate_up_params(Matcher& m, const Tensor& out, const Tensor& out_scale,
                                                 const Tensor& x, const Tensor& x_scale, const Tensor& weight,
                                                 const Tensor& weight_scale, const Tensor& expert_offsets,
                                                 const Tensor& sorted_rows, int64_t activation, double alpha,
                                                 double limit) {
    m.shape("x", x, {"num_tokens", "hidden"}, 2).shape("out", out, {"num_rows", "inter"}, 2);
    m.shape("out_scale", out_scale, {"num_rows", ceil_div(m["inter"], kFp8Group)}, 2)
        .shape("sorted_rows", sorted_rows, {"num_rows"});
    check_fp8_experts(m, x, x_scale, weight, weight_scale, expert_offsets, "num_tokens", 2 * m["inter"],
                      m["hidden"]);
    m.same_dtype("out", out, DType::kE4M3);
    m.same_dtype("out_scale", out_scale, DType::kF32);
    m.same_dtype("sorted_rows", sorted_rows, DType::kI32);
    const int64_t num_tokens = m["num_tokens"], num_rows = m["num_rows"];
    m.require(num_tokens == 0 ? num_rows == 0 : num_rows % num_tokens == 0, "num_rows=", num_rows,
              " must be a multiple of num_tokens=", num_tokens);
    return {
        .out = ptr(out),
        .out_scale = ptr<float>(out_scale),
        .x = ptr(x),
        .x_scale = ptr<float>(x_scale),
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
        .activation = to_activation(m, activation),
        .alpha = static_cast<float>(alpha),
        .limit = static_cast<float>(limit),
    };
}

template <class B>
int64_t fp8_moe_gate_up_workspace(const Tensor& out, const Tensor& out_scale, const Tensor& x,
                                  const Tensor& x_scale, const Tensor& weight, const Tensor& weight_scale,
                                  const Tensor& expert_offsets, const Tensor& sorted_rows, int64_t activation,
                                  double alpha, double limit) {
    Matcher m("fp8_moe_gate_up");
    return B::fp8_moe_gate_up_workspace(fp8_moe_gate_up_params(m, out, out_scale, x, x_scale, weight,
                                                               weight_scale, expert_offsets, sorted_rows,
                                                               activation, alpha, limit));
}

template <class B>
void fp8_moe_gate_up(const Tensor& out, const Tensor& out_scale, const Tensor& x, const Tensor& x_scale,
                     const Tensor& weight, const Tensor& weight_scale, const Tensor& expert_offsets,
                     const Tensor& sorted_rows, const Tensor& workspace, int64_t activation, double alpha,
                     double limit) {
    Matcher m("fp8_moe_gate_up");
    Fp8MoeGateUpParams p = fp8_moe_gate_up_params(m, out, out_scale, x, x_scale, weight, weight_scale,
                                                  expert_offsets, sorted_rows, activation, alpha, limit);
    set_workspace(m, p, workspace, B::fp8_moe_gate_up_workspace(p));
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::fp8_moe_gate_up, p);
}

template <class B>
void fp8_moe_down(const Tensor& out, const Tensor& x, const Tensor& x_scale, const Tensor& weight,
                  const Tensor& weight_scale, const Tensor& expert_offsets) {
    Matcher m("fp8_moe_down");
    m.shape("x", x, {"num_rows", "inter"}, 2).shape("out", out, {"num_rows", "hidden"}, 2);
    check_fp8_experts(m, x, x_scale, weight, weight_scale, expert_offsets, "num_rows", m["hidden"],
                      m["inter"]);
    const Fp8MoeDownParams p{
        .out = ptr(out),
        .x = ptr(x),
        .x_scale = ptr<float>(x_scale),
        .weight = ptr(weight),
        .weight_scale = ptr<float>(weight_scale),
        .expert_offsets = ptr<int32_t>(expert_offsets),
        .num_rows = m["num_rows"],
        .num_local_experts = m["num_local_experts"],
        .hidden = m["hidden"],
        .inter = m["inter"],
        .out_dtype = m.dtype("out", out, kFloat),
    };
    if (p.num_rows == 0) return;
    B::enqueue(m.device_index(), &B::fp8_moe_down, p);
}

}  // namespace mmx::ops
