#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// kSilu: g * sigmoid(g) * u. kSwigluOai: g' = min(g, limit), u' = clamp(u, -limit, limit),
/// g' * sigmoid(alpha * g') * (u' + 1).
enum class Activation : int64_t { kSilu = 0, kSwigluOai = 1 };

/// out = act(gate, up) with gate = gate_up[:, :inter], up = gate_up[:, inter:]; fp32 inside.
struct GatedActParams {
    void* out;            // [num_tokens, inter]
    const void* gate_up;  // [num_tokens, 2 * inter]
    int64_t num_tokens, inter;
    int64_t out_stride, gate_up_stride;
    Activation activation;
    float alpha, limit;  // read by kSwigluOai only
    DType dtype;
};

}  // namespace mmx
