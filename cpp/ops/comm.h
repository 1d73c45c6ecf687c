#pragma once

#include "cpp/ops/norm.h"
#include "cpp/ops/peers.h"

namespace mmx::ops {

template <class B>
void all_reduce_add_rms_norm(const Tensor& out, const OptionalTensor& codes, const OptionalTensor& scale,
                             const Tensor& residual, const Tensor& x, const Tensor& weight, double eps,
                             bool gemma, const std::vector<Tensor>& inboxes, const OptionalTensor& epochs,
                             int64_t rank, double timeout) {
    Matcher m("all_reduce_add_rms_norm");
    const AddRmsNormParams norm = add_rms_norm_params(m, out, residual, x, weight, eps, gemma);
    m.require(m["hidden"] % 8 == 0 && m["hidden"] <= 8192,
              "hidden must be a multiple of 8 and at most 8192, got ", m["hidden"]);
    m.require(inboxes.size() <= 2 || m["hidden"] >= 8 * static_cast<int64_t>(inboxes.size()),
              "hidden must be at least 8 for each of ", inboxes.size(), " ranks, got ", m["hidden"]);
    for (const Tensor& rows : {x, residual, out})
        m.require(rows.stride(0) % 8 == 0,
                  "rows of x, residual and out must begin at multiples of 8 elements");
    check_codes(m, codes, scale);
    const AllReduceAddRmsNormParams p{
        .norm = norm,
        .peers = to_peers(m, inboxes, epochs, rank, timeout, norm.num_tokens,
                          norm.hidden * dtype_bytes(norm.dtype) / 4),
        .codes = ptr(codes),
        .scale = ptr<float>(scale),
    };
    if (norm.num_tokens == 0 || norm.hidden == 0) return;
    B::enqueue(m.device_index(), &B::all_reduce_add_rms_norm, p);
}

}  // namespace mmx::ops
