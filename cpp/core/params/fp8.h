#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"
#include "cpp/core/params/activation.h"

/// Rows and weights in e4m3. A scale is a multiplier: of rows one per row and 128 columns ("group"), of
/// weights one per block of 128 x 128. A product over k is the sum over blocks of 128 of k of (x . w over the
/// block) * x_scale * weight_scale in fp32, in an order that depends on k only: a row's result is the same in
/// every batch.
namespace mmx {

inline constexpr int64_t kFp8Group = 128;
inline constexpr float kFp8Max = 448.0f;
/// Smallest largest magnitude that a scale is made from: zeros get a scale that is neither 0 nor infinite.
inline constexpr float kFp8LeastAmax = 1e-10f;
inline constexpr int64_t kMxfp8Group = 32;

/// For every row and group: a = max(largest |x|, 1e-10) without NaN; out = e4m3(x * (448 / a)), to nearest
/// even; scale = a / 448. All in fp32.
struct Fp8QuantizeParams {
    void* out;      // [rows, cols] e4m3
    float* scale;   // [rows, ceil(cols / 128)]
    const void* x;  // [rows, cols]
    int64_t rows, cols;
    int64_t x_stride;
    DType dtype;  // of x
};

/// out = x . weight^T.
struct Fp8LinearParams {
    void* out;                  // [m, n]
    const void* x;              // [m, k] e4m3
    const float* x_scale;       // [m, ceil(k / 128)]
    const void* weight;         // [n, k] e4m3
    const float* weight_scale;  // [ceil(n / 128), ceil(k / 128)]
    int64_t m, n, k;
    int64_t out_stride;
    DType out_dtype;  // f32 or bf16
};

/// Rows in plan order as in MoeGateUpParams: h[m] = act(x[token] . gate^T, x[token] . up^T) in fp32, then
/// quantised as Fp8QuantizeParams says.
struct Fp8MoeGateUpParams {
    void* out;                      // [num_tokens * topk, inter] e4m3
    float* out_scale;               // [num_tokens * topk, ceil(inter / 128)]
    const void* x;                  // [num_tokens, hidden] e4m3
    const float* x_scale;           // [num_tokens, ceil(hidden / 128)]
    const void* weight;             // [num_local_experts, 2 * inter, hidden] e4m3, gate rows first
    const float* weight_scale;      // [num_local_experts, ceil(2 * inter / 128), ceil(hidden / 128)]
    const int32_t* expert_offsets;  // [num_local_experts + 1]
    const int32_t* sorted_rows;     // [num_tokens * topk]
    void* workspace;                // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_tokens, topk, num_local_experts, hidden, inter;
    Activation activation;
    float alpha, limit;
};

/// out[m] = x[m] . weight[e]^T for the rows m of expert e.
struct Fp8MoeDownParams {
    void* out;                      // [num_rows, hidden]
    const void* x;                  // [num_rows, inter] e4m3
    const float* x_scale;           // [num_rows, ceil(inter / 128)]
    const void* weight;             // [num_local_experts, hidden, inter] e4m3
    const float* weight_scale;      // [num_local_experts, ceil(hidden / 128), ceil(inter / 128)]
    const int32_t* expert_offsets;  // [num_local_experts + 1]
    int64_t num_rows, num_local_experts, hidden, inter;
    DType out_dtype;  // f32 or bf16
};

/// out[n, k] = x[n, k] * 2^(scale[n, k / 32] - 127); 255 is NaN (e8m0).
struct Mxfp8DequantParams {
    void* out;             // [rows, cols]
    const void* x;         // [rows, cols] e4m3
    const uint8_t* scale;  // [rows, ceil(cols / 32)] e8m0
    int64_t rows, cols;
    DType dtype;  // of out
};

}  // namespace mmx
