#pragma once

#include "cpp/ops/peers.h"

namespace mmx::ops {

template <class B>
void all_reduce_add_rms_norm(const Tensor& out, const Tensor& residual, const Tensor& x, const Tensor& weight,
                             double eps, bool gemma, const std::vector<Tensor>& inboxes,
                             const OptionalTensor& epochs, int64_t rank, double timeout) {
    Matcher m("all_reduce_add_rms_norm");
    m.shape("x", x, {"num_tokens", "hidden"})
        .shape("residual", residual, {"num_tokens", "hidden"})
        .shape("out", out, {"num_tokens", "hidden"})
        .shape("weight", weight, {"hidden"});
    const DType dtype = m.dtype("x", x, kFloat);
    m.same_dtype("residual", residual, dtype);
    m.same_dtype("out", out, dtype);
    m.require(m["hidden"] % 8 == 0 && m["hidden"] <= 8192,
              "hidden must be a multiple of 8 and at most 8192, got ", m["hidden"]);
    for (const Tensor& rows : {x, residual, out})
        m.require(rows.stride(0) % 8 == 0,
                  "rows of x, residual and out must begin at multiples of 8 elements");
    const AllReduceAddRmsNormParams p{
        .out = ptr(out),
        .residual = ptr(residual),
        .x = ptr(x),
        .weight = ptr(weight),
        .peers = to_peers(m, inboxes, epochs, rank, timeout, m["num_tokens"],
                          m["hidden"] * dtype_bytes(dtype) / 4),
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
    if (p.num_tokens == 0 || p.hidden == 0) return;
    B::enqueue(m.device_index(), &B::all_reduce_add_rms_norm, p);
}

}  // namespace mmx::ops
