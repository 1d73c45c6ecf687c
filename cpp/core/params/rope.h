#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// Rotate-half rope on the first `rotary_dim` of each head, pair (i, i + rotary_dim/2); the rest is copied.
/// Products in fp32, one rounding at the end. `out` may be `x`.
struct RopeParams {
    void* out;                 // [num_tokens, num_heads, head_dim]
    const void* x;             // [num_tokens, num_heads, head_dim]
    const float* cos_sin;      // [max_positions, rotary_dim]: cos of rotary_dim/2 angles, then their sin
    const int64_t* positions;  // [num_tokens], each in [0, max_positions)
    int64_t num_tokens, num_heads, head_dim, rotary_dim, max_positions;
    int64_t out_token_stride, out_head_stride;
    int64_t x_token_stride, x_head_stride;
    DType dtype;
};

}  // namespace mmx
