#pragma once

#include "cpp/ops/backend.h"

namespace mmx::ops {

inline Activation to_activation(const Matcher& m, int64_t value) {
    m.require(value == 0 || value == 1, "activation must be 0 (silu) or 1 (swiglu_oai), got ", value);
    return static_cast<Activation>(value);
}

template <class B>
void gated_act(const Tensor& out, const Tensor& gate_up, int64_t activation, double alpha, double limit) {
    Matcher m("gated_act");
    m.shape("out", out, {"num_tokens", "inter"}).shape("gate_up", gate_up, {"num_tokens", 2 * m["inter"]});
    const DType dtype = m.dtype("gate_up", gate_up, kFloat);
    m.same_dtype("out", out, dtype);
    const GatedActParams p{
        .out = ptr(out),
        .gate_up = ptr(gate_up),
        .num_tokens = m["num_tokens"],
        .inter = m["inter"],
        .out_stride = out.stride(0),
        .gate_up_stride = gate_up.stride(0),
        .activation = to_activation(m, activation),
        .alpha = static_cast<float>(alpha),
        .limit = static_cast<float>(limit),
        .dtype = dtype,
    };
    if (p.num_tokens == 0 || p.inter == 0) return;
    B::enqueue(m.device_index(), &B::gated_act, p);
}

}  // namespace mmx::ops
