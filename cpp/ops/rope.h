#pragma once

#include "cpp/ops/backend.h"

namespace mmx::ops {

template <class B>
void rope(const Tensor& out, const Tensor& x, const Tensor& cos_sin, const Tensor& positions) {
    Matcher m("rope");
    m.shape("x", x, {"num_tokens", "num_heads", "head_dim"})
        .shape("out", out, {"num_tokens", "num_heads", "head_dim"})
        .shape("cos_sin", cos_sin, {"max_positions", "rotary_dim"}, 2)
        .shape("positions", positions, {"num_tokens"});
    const DType dtype = m.dtype("x", x, kFloat);
    m.same_dtype("out", out, dtype);
    m.same_dtype("cos_sin", cos_sin, DType::kF32);
    m.same_dtype("positions", positions, DType::kI64);
    m.require(m["rotary_dim"] % 2 == 0 && m["rotary_dim"] <= m["head_dim"],
              "rotary_dim must be even and at most head_dim=", m["head_dim"], ", got ", m["rotary_dim"]);
    const RopeParams p{
        .out = ptr(out),
        .x = ptr(x),
        .cos_sin = ptr<float>(cos_sin),
        .positions = ptr<int64_t>(positions),
        .num_tokens = m["num_tokens"],
        .num_heads = m["num_heads"],
        .head_dim = m["head_dim"],
        .rotary_dim = m["rotary_dim"],
        .max_positions = m["max_positions"],
        .out_token_stride = out.stride(0),
        .out_head_stride = out.stride(1),
        .x_token_stride = x.stride(0),
        .x_head_stride = x.stride(1),
        .dtype = dtype,
    };
    if (p.num_tokens == 0 || p.num_heads == 0) return;
    B::enqueue(m.device_index(), &B::rope, p);
}

}  // namespace mmx::ops
