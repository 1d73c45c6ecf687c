#pragma once

#include "cpp/core/params/activation.h"
#include "cpp/core/params/attention.h"
#include "cpp/core/params/comm.h"
#include "cpp/core/params/embedding.h"
#include "cpp/core/params/fp8.h"
#include "cpp/core/params/gemm.h"
#include "cpp/core/params/kv_cache.h"
#include "cpp/core/params/moe.h"
#include "cpp/core/params/norm.h"
#include "cpp/core/params/qkv.h"
#include "cpp/core/params/quant.h"
#include "cpp/core/params/rope.h"
#include "cpp/core/params/sampling.h"
#include "cpp/core/params/selector.h"
#include "cpp/core/stream.h"

/// Every op with its contract: the one list from which launchers, dispatch and registrations are made.
#define MMX_OPS(X)                                        \
    X(rms_norm, RmsNormParams)                            \
    X(add_rms_norm, AddRmsNormParams)                     \
    X(add_rms_norm_quantize, AddRmsNormQuantizeParams)    \
    X(combine_add_rms_norm, CombineAddRmsNormParams)      \
    X(all_reduce_add_rms_norm, AllReduceAddRmsNormParams) \
    X(rope, RopeParams)                                   \
    X(kv_store, KvStoreParams)                            \
    X(index_k_store, IndexKStoreParams)                   \
    X(norm_rope_store, NormRopeStoreParams)               \
    X(qk_mean_squares, QkMeanSquaresParams)               \
    X(select_blocks, SelectBlocksParams)                  \
    X(paged_attention, PagedAttentionParams)              \
    X(sparse_attention, SparseAttentionParams)            \
    X(gated_act, GatedActParams)                          \
    X(moe_router, MoeRouterParams)                        \
    X(moe_plan, MoePlanParams)                            \
    X(moe_router_plan, MoeRouterPlanParams)               \
    X(moe_gate_up, MoeGateUpParams)                       \
    X(moe_down, MoeDownParams)                            \
    X(moe_combine, MoeCombineParams)                      \
    X(linear, LinearParams)                               \
    X(embedding, EmbeddingParams)                         \
    X(fp8_block_dequant, Fp8BlockDequantParams)           \
    X(fp8_quantize, Fp8QuantizeParams)                    \
    X(fp8_linear, Fp8LinearParams)                        \
    X(fp8_moe_gate_up, Fp8MoeGateUpParams)                \
    X(fp8_moe_down, Fp8MoeDownParams)                     \
    X(mxfp8_dequant, Mxfp8DequantParams)                  \
    X(adjust_logits, AdjustLogitsParams)                  \
    X(sample, SampleParams)                               \
    X(logprobs, LogprobsParams)

/// Ops that need scratch: `int64_t <op>_workspace(const Params&)` gives its size in bytes, a pure function of
/// sizes and dtypes (pointers are not read).
#define MMX_WORKSPACE_OPS(X)                   \
    X(select_blocks, SelectBlocksParams)       \
    X(paged_attention, PagedAttentionParams)   \
    X(sparse_attention, SparseAttentionParams) \
    X(moe_router, MoeRouterParams)             \
    X(moe_plan, MoePlanParams)                 \
    X(moe_router_plan, MoeRouterPlanParams)    \
    X(moe_gate_up, MoeGateUpParams)            \
    X(moe_down, MoeDownParams)                 \
    X(fp8_moe_gate_up, Fp8MoeGateUpParams)     \
    X(adjust_logits, AdjustLogitsParams)       \
    X(sample, SampleParams)                    \
    X(logprobs, LogprobsParams)

#define MMX_DECLARE_OP(op, P) void op(const P& p, Stream stream);
#define MMX_DECLARE_WORKSPACE(op, P) int64_t op##_workspace(const P& p);
