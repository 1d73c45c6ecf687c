#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"
#include "cpp/core/params/moe.h"

namespace mmx {

/// out = x * rsqrt(mean(x^2) + eps) * (gemma ? 1 + weight : weight), statistics and product in fp32, one
/// rounding at the end. A row is (token, head); heads share `weight`. `out` may be `x`.
struct RmsNormParams {
    void* out;           // [num_tokens, num_heads, hidden]
    const void* x;       // [num_tokens, num_heads, hidden]
    const void* weight;  // [hidden]
    int64_t num_tokens, num_heads, hidden;
    int64_t out_token_stride, out_head_stride;
    int64_t x_token_stride, x_head_stride;
    float eps;
    bool gemma;
    DType dtype;  // of out and x
    DType weight_dtype;
};

/// residual += x (fp32 sum, rounded to dtype); out = rms_norm(residual). `out` may be `x`.
struct AddRmsNormParams {
    void* out;           // [num_tokens, hidden]
    void* residual;      // [num_tokens, hidden]
    const void* x;       // [num_tokens, hidden]
    const void* weight;  // [hidden]
    int64_t num_tokens, hidden;
    int64_t out_stride, residual_stride, x_stride;
    float eps;
    bool gemma;
    DType dtype;  // of out, residual and x
    DType weight_dtype;
};

/// add_rms_norm, then fp8_quantize of its result.
struct AddRmsNormQuantizeParams {
    AddRmsNormParams norm;  // hidden a multiple of 128
    void* codes;            // [num_tokens, hidden] e4m3
    float* scale;           // [num_tokens, hidden / 128]
};

/// moe_combine, then add_rms_norm of its result and, with `codes`, fp8_quantize of what that gives.
struct CombineAddRmsNormParams {
    MoeCombineParams combine;  // out as that of `norm`
    AddRmsNormParams norm;     // x is out
    void* codes;               // [num_tokens, hidden] e4m3, hidden a multiple of 128; or null
    float* scale;              // [num_tokens, hidden / 128]; or null
};

}  // namespace mmx
