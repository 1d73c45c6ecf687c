#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// out[n, k] = x[n, k] * scale[n / 128, k / 128], product in fp32; the tail blocks may be partial.
struct Fp8BlockDequantParams {
    void* out;           // [rows, cols]
    const void* x;       // [rows, cols] e4m3
    const float* scale;  // [ceil(rows / 128), ceil(cols / 128)]
    int64_t rows, cols;
    int64_t out_stride, x_stride, scale_stride;
    DType dtype;  // of out
};

}  // namespace mmx
