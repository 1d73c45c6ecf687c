#pragma once

#include "cpp/ops/backend.h"
#include "cpp/ops/moe.h"

namespace mmx::ops {

template <class B>
void rms_norm(const Tensor& out, const Tensor& x, const Tensor& weight, double eps, bool gemma) {
    Matcher m("rms_norm");
    const bool heads = x.dim() == 3;
    if (heads)
        m.shape("x", x, {"num_tokens", "num_heads", "hidden"})
            .shape("out", out, {"num_tokens", "num_heads", "hidden"});
    else
        m.shape("x", x, {"num_tokens", "hidden"}).shape("out", out, {"num_tokens", "hidden"});
    m.shape("weight", weight, {"hidden"});
    const DType dtype = m.dtype("x", x, kFloat);
    m.same_dtype("out", out, dtype);
    const RmsNormParams p{
        .out = ptr(out),
        .x = ptr(x),
        .weight = ptr(weight),
        .num_tokens = m["num_tokens"],
        .num_heads = heads ? m["num_heads"] : 1,
        .hidden = m["hidden"],
        .out_token_stride = out.stride(0),
        .out_head_stride = heads ? out.stride(1) : 0,
        .x_token_stride = x.stride(0),
        .x_head_stride = heads ? x.stride(1) : 0,
        .eps = static_cast<float>(eps),
        .gemma = gemma,
        .dtype = dtype,
        .weight_dtype = m.dtype("weight", weight, kFloat),
    };
    if (p.num_tokens == 0 || p.num_heads == 0 || p.hidden == 0) return;
    B::enqueue(m.device_index(), &B::rms_norm, p);
}

inline AddRmsNormParams add_rms_norm_params(Matcher& m, const Tensor& out, const Tensor& residual,
                                            const Tensor& x, const Tensor& weight, double eps, bool gemma) {
    m.shape("x", x, {"num_tokens", "hidden"})
        .shape("residual", residual, {"num_tokens", "hidden"})
        .shape("out", out, {"num_tokens", "hidden"})
        .shape("weight", weight, {"hidden"});
    const DType dtype = m.dtype("x", x, kFloat);
    m.same_dtype("residual", residual, dtype);
    m.same_dtype("out", out, dtype);
    return {
        .out = ptr(out),
        .residual = ptr(residual),
        .x = ptr(x),
        .weight = ptr(weight),
        .num_tokens = m["num_tokens"],
        .hidden = m["hidden"],
        .out_stride = out.stride(0),
        .residual_stride = residual.stride(0),
        .x_stride = x.stride(0),
        .eps = static_cast<float>(eps),
        .gemma = gemma,
        .dtype = dtype,
        .weight_dtype = m.dtype("weight", weight, kFloat),
    };
}

template <class B>
void add_rms_norm(const Tensor& out, const Tensor& residual, const Tensor& x, const Tensor& weight,
                  double eps, bool gemma) {
    Matcher m("add_rms_norm");
    const AddRmsNormParams p = add_rms_norm_params(m, out, residual, x, weight, eps, gemma);
    if (p.num_tokens == 0 || p.hidden == 0) return;
    B::enqueue(m.device_index(), &B::add_rms_norm, p);
}

/// Codes and scale of rows [num_tokens, hidden], or neither.
inline void check_codes(Matcher& m, const OptionalTensor& codes, const OptionalTensor& scale) {
    m.require(codes.has_value() == scale.has_value(), "codes and scale must be given together");
    if (!codes) return;
    const int64_t hidden = m["hidden"];
    m.require(hidden % kFp8Group == 0, "hidden must be a multiple of ", kFp8Group, ", got ", hidden);
    m.shape("codes", *codes, {"num_tokens", "hidden"}, 2)
        .shape("scale", *scale, {"num_tokens", hidden / kFp8Group}, 2);
    m.same_dtype("codes", *codes, DType::kE4M3);
    m.same_dtype("scale", *scale, DType::kF32);
}

template <class B>
void add_rms_norm_quantize(const Tensor& out, const Tensor& codes, const Tensor& scale,
                           const Tensor& residual, const Tensor& x, const Tensor& weight, double eps,
                           bool gemma) {
    Matcher m("add_rms_norm_quantize");
    const AddRmsNormParams norm = add_rms_norm_params(m, out, residual, x, weight, eps, gemma);
    check_codes(m, codes, scale);
    const AddRmsNormQuantizeParams p{.norm = norm, .codes = ptr(codes), .scale = ptr<float>(scale)};
    if (norm.num_tokens == 0 || norm.hidden == 0) return;
    B::enqueue(m.device_index(), &B::add_rms_norm_quantize, p);
}

template <class B>
void combine_add_rms_norm(const Tensor& out, const OptionalTensor& codes, const OptionalTensor& scale,
                          const Tensor& residual, const Tensor& x, const Tensor& row_positions,
                          const Tensor& topk_weights, const OptionalTensor& shared, const Tensor& weight,
                          double eps, bool gemma) {
    Matcher m("combine_add_rms_norm");
    const MoeCombineParams combine = moe_combine_params(m, out, x, row_positions, topk_weights, shared);
    const AddRmsNormParams norm = add_rms_norm_params(m, out, residual, out, weight, eps, gemma);
    check_codes(m, codes, scale);
    const CombineAddRmsNormParams p{
        .combine = combine, .norm = norm, .codes = ptr(codes), .scale = ptr<float>(scale)};
    if (norm.num_tokens == 0 || norm.hidden == 0) return;
    B::enqueue(m.device_index(), &B::combine_add_rms_norm, p);
}

}  // namespace mmx::ops
