#pragma once

#include "cpp/core/ops.h"

/// CUDA kernels that exist: a subset of MMX_OPS and MMX_WORKSPACE_OPS, each with the launcher
/// `void mmx::cuda::<op>(const <Op>Params&, Stream)`. They allocate nothing, never synchronise and never read
/// device memory on the host, so that every call can be captured in a CUDA graph.
#define MMX_CUDA_OPS(X)                                   \
    X(rms_norm, RmsNormParams)                            \
    X(add_rms_norm, AddRmsNormParams)                     \
    X(add_rms_norm_quantize, AddRmsNormQuantizeParams)    \
    X(combine_add_rms_norm, CombineAddRmsNormParams)      \
    X(all_reduce_add_rms_norm, AllReduceAddRmsNormParams) \
    X(linear, LinearParams)                               \
    X(rope, RopeParams)                                   \
    X(kv_store, KvStoreParams)                            \
    X(index_k_store, IndexKStoreParams)                   \
    X(norm_rope_store, NormRopeStoreParams)               \
    X(qk_mean_squares, QkMeanSquaresParams)               \
    X(embedding, EmbeddingParams)                         \
    X(select_blocks, SelectBlocksParams)                  \
    X(paged_attention, PagedAttentionParams)              \
    X(sparse_attention, SparseAttentionParams)            \
    X(adjust_logits, AdjustLogitsParams)                  \
    X(sample, SampleParams)                               \
    X(logprobs, LogprobsParams)                           \
    X(gated_act, GatedActParams)                          \
    X(moe_router, MoeRouterParams)                        \
    X(moe_plan, MoePlanParams)                            \
    X(moe_router_plan, MoeRouterPlanParams)               \
    X(moe_gate_up, MoeGateUpParams)                       \
    X(moe_down, MoeDownParams)                            \
    X(moe_combine, MoeCombineParams)                      \
    X(fp8_block_dequant, Fp8BlockDequantParams)           \
    X(fp8_quantize, Fp8QuantizeParams)                    \
    X(fp8_linear, Fp8LinearParams)                        \
    X(fp8_moe_gate_up, Fp8MoeGateUpParams)                \
    X(fp8_moe_down, Fp8MoeDownParams)                     \
    X(mxfp8_dequant, Mxfp8DequantParams)

#define MMX_CUDA_WORKSPACE_OPS(X)              \
    X(select_blocks, SelectBlocksParams)       \
    X(paged_attention, PagedAttentionParams)   \
    X(sparse_attention, SparseAttentionParams) \
    X(adjust_logits, AdjustLogitsParams)       \
    X(sample, SampleParams)                    \
    X(logprobs, LogprobsParams)                \
    X(moe_router, MoeRouterParams)             \
    X(moe_plan, MoePlanParams)                 \
    X(moe_router_plan, MoeRouterPlanParams)    \
    X(moe_gate_up, MoeGateUpParams)            \
    X(moe_down, MoeDownParams)                 \
    X(fp8_moe_gate_up, Fp8MoeGateUpParams)

namespace mmx::cuda {

MMX_CUDA_OPS(MMX_DECLARE_OP)
MMX_CUDA_WORKSPACE_OPS(MMX_DECLARE_WORKSPACE)

}  // namespace mmx::cuda
