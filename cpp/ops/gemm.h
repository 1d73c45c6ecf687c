#pragma once

#include "cpp/ops/backend.h"

namespace mmx::ops {

template <class B>
void linear(const Tensor& out, const Tensor& x, const Tensor& weight) {
    Matcher m("linear");
    m.shape("x", x, {"m", "k"}).shape("weight", weight, {"n", "k"}, 2).shape("out", out, {"m", "n"});
    const DType dtype = m.dtype("x", x, kFloat);
    m.same_dtype("weight", weight, dtype);
    const LinearParams p{
        .out = ptr(out),
        .x = ptr(x),
        .weight = ptr(weight),
        .m = m["m"],
        .n = m["n"],
        .k = m["k"],
        .out_stride = out.stride(0),
        .x_stride = x.stride(0),
        .dtype = dtype,
        .out_dtype = m.dtype("out", out, {dtype, DType::kF32}),
    };
    if (p.m == 0 || p.n == 0) return;
    B::enqueue(m.device_index(), &B::linear, p);
}

}  // namespace mmx::ops
