#pragma once

#include "cpp/ops/backend.h"

namespace mmx::ops {

template <class B>
void embedding(const Tensor& out, const Tensor& weight, const Tensor& ids, int64_t first_row) {
    Matcher m("embedding");
    m.shape("weight", weight, {"num_rows", "hidden"}, 2)
        .shape("ids", ids, {"num_tokens"})
        .shape("out", out, {"num_tokens", "hidden"});
    const DType dtype = m.dtype("weight", weight, kFloat);
    m.same_dtype("out", out, dtype);
    m.same_dtype("ids", ids, DType::kI64);
    const EmbeddingParams p{
        .out = ptr(out),
        .weight = ptr(weight),
        .ids = ptr<int64_t>(ids),
        .num_tokens = m["num_tokens"],
        .hidden = m["hidden"],
        .num_rows = m["num_rows"],
        .first_row = first_row,
        .out_stride = out.stride(0),
        .dtype = dtype,
    };
    if (p.num_tokens == 0) return;
    B::enqueue(m.device_index(), &B::embedding, p);
}

}  // namespace mmx::ops
