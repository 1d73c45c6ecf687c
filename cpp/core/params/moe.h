#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"
#include "cpp/core/params/activation.h"

namespace mmx {

/// Router: s = sigmoid(x . gate_weight^T) in fp32; the `topk` experts with the largest s + bias (ties: lower
/// id), best first; topk_weights = routed_scale * s / (sum of the chosen s), or 0 where that sum is 0. A NaN
/// ranks as -inf, so the ids of a broken token are valid and distinct and its weights NaN. Every token goes
/// to the shared experts num_experts, num_experts + 1, ... too, with weight 1, in the columns behind.
struct MoeRouterParams {
    int32_t* topk_ids;         // [num_tokens, topk + num_shared]
    float* topk_weights;       // [num_tokens, topk + num_shared]
    const void* x;             // [num_tokens, hidden]
    const float* gate_weight;  // [num_experts, hidden]
    const float* bias;         // [num_experts] or null
    void* workspace;           // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_tokens, hidden, num_experts, topk, num_shared;
    int64_t x_stride;
    float routed_scale;
    DType dtype;  // of x
};

/// Expert plan: rows (token, k) sorted by expert, stable in token order. Only experts
/// [first_expert, first_expert + num_local_experts) take part; rows of others get row_positions -1.
struct MoePlanParams {
    int32_t* expert_offsets;  // [num_local_experts + 1] exclusive prefix sums of rows per expert
    int32_t* sorted_rows;     // [num_tokens * topk] token * topk + k of each sorted row; only the first
                              // expert_offsets[num_local_experts] entries are written
    int32_t* row_positions;   // [num_tokens * topk] inverse of sorted_rows, -1 for remote experts
    const int32_t* topk_ids;  // [num_tokens, topk]
    void* workspace;          // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_tokens, topk, first_expert, num_local_experts;
};

/// Both in turn: the plan is made of the router's ids, its topk counts shared experts too. The workspace is
/// the router's.
struct MoeRouterPlanParams {
    MoeRouterParams router;
    MoePlanParams plan;
};

/// Rows of both grouped GEMMs are in plan order: D[m, n] = A[m, k] . B[e, n, k]^T for the rows m of expert e,
/// accumulated in fp32 in an order that depends on k only: a row's result is the same in every batch.
/// Gate and up: out[m] = act(x[token] . gate^T, x[token] . up^T) with token = sorted_rows[m] / topk.
struct MoeGateUpParams {
    void* out;                      // [num_tokens * topk, inter]
    const void* x;                  // [num_tokens, hidden]
    const void* weight;             // [num_local_experts, 2 * inter, hidden] gate rows first
    const float* weight_scale;      // [num_local_experts, ceil(2 * inter / 128), ceil(hidden / 128)] or null
    const int32_t* expert_offsets;  // [num_local_experts + 1]
    const int32_t* sorted_rows;     // [num_tokens * topk]
    void* workspace;                // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_tokens, topk, num_local_experts, hidden, inter;
    int64_t x_stride;
    Activation activation;
    float alpha, limit;
    DType dtype;         // of out and x
    DType weight_dtype;  // dtype, or kE4M3 with weight_scale
};

/// Down: out[m] = x[m] . weight[e]^T.
struct MoeDownParams {
    void* out;                      // [num_tokens * topk, hidden]
    const void* x;                  // [num_tokens * topk, inter]
    const void* weight;             // [num_local_experts, hidden, inter]
    const float* weight_scale;      // [num_local_experts, ceil(hidden / 128), ceil(inter / 128)] or null
    const int32_t* expert_offsets;  // [num_local_experts + 1]
    void* workspace;                // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_rows, num_local_experts, hidden, inter;
    DType dtype;
    DType weight_dtype;
};

/// out[t] = sum over k ascending of topk_weights[t, k] * x[row_positions[t, k]] (remote rows skipped) +
/// shared[t], fp32 sum, one rounding at the end.
struct MoeCombineParams {
    void* out;                     // [num_tokens, hidden]
    const void* x;                 // [num_tokens * topk, hidden] rows in plan order
    const int32_t* row_positions;  // [num_tokens * topk]
    const float* topk_weights;     // [num_tokens, topk]
    const void* shared;            // [num_tokens, hidden] or null
    int64_t num_tokens, topk, hidden;
    int64_t out_stride, shared_stride;
    DType dtype;
};

}  // namespace mmx
