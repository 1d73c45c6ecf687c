#pragma once

#include "cpp/core/math.h"
#include "cpp/ops/backend.h"

namespace mmx::ops {

template <class B>
void fp8_block_dequant(const Tensor& out, const Tensor& x, const Tensor& scale) {
    Matcher m("fp8_block_dequant");
    m.shape("x", x, {"rows", "cols"}).shape("out", out, {"rows", "cols"});
    m.shape("scale", scale, {ceil_div(m["rows"], 128), ceil_div(m["cols"], 128)});
    m.same_dtype("x", x, DType::kE4M3);
    m.same_dtype("scale", scale, DType::kF32);
    const Fp8BlockDequantParams p{
        .out = ptr(out),
        .x = ptr(x),
        .scale = ptr<float>(scale),
        .rows = m["rows"],
        .cols = m["cols"],
        .out_stride = out.stride(0),
        .x_stride = x.stride(0),
        .scale_stride = scale.stride(0),
        .dtype = m.dtype("out", out, kFloat),
    };
    if (p.rows == 0 || p.cols == 0) return;
    B::enqueue(m.device_index(), &B::fp8_block_dequant, p);
}

}  // namespace mmx::ops
