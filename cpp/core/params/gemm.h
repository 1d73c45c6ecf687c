#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// out[m, n] = x[m, k] . weight[n, k]^T with fp32 accumulation. A result does not depend on the number of
/// rows m in the call, so a token's projection is the same alone and in any batch.
struct LinearParams {
    void* out;           // [m, n]
    const void* x;       // [m, k]
    const void* weight;  // [n, k]
    int64_t m, n, k;
    int64_t out_stride, x_stride;
    DType dtype;      // of x and weight
    DType out_dtype;  // dtype, or kF32 (logits)
};

}  // namespace mmx
