#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// scale[m] = max |x[m]| / 127; out[m, k] = x[m, k] * (127 / max |x[m]|) rounded half to even. A row of zeros
/// gives scale 0 and zeros.
struct DynamicQuantParams {
    void* out;      // [rows, cols] int8
    float* scale;   // [rows]
    const void* x;  // [rows, cols]
    int64_t rows, cols;
    int64_t x_stride;
    DType dtype;  // of x
};

/// out[m, n] = (x[m, k] . weight[n, k]^T) * weight_scale[n] * x_scale[m], the product exact in int32, turned
/// to fp32 and multiplied in that order, one rounding at the end.
struct W8A8LinearParams {
    void* out;                  // [m, n]
    const void* x;              // [m, k] int8
    const void* weight;         // [n, k] int8
    const float* x_scale;       // [m]
    const float* weight_scale;  // [n]
    void* workspace;            // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t m, n, k;
    int64_t out_stride;
    DType dtype;  // of out
};

}  // namespace mmx
