#pragma once

#include "cpp/core/ops.h"

/// Ops of the library that have an AscendC kernel: subsets of MMX_OPS and MMX_WORKSPACE_OPS, each with the
/// launcher `void mmx::ascend::<op>(const <Op>Params&, Stream)` of an .asc file. They never read device
/// memory on the host, so that every call can be captured; an op that is missing here runs its reference.
#define MMX_ASCEND_OPS(X)                      \
    X(rms_norm, RmsNormParams)                 \
    X(add_rms_norm, AddRmsNormParams)          \
    X(norm_rope_store, NormRopeStoreParams)    \
    X(select_blocks, SelectBlocksParams)       \
    X(paged_attention, PagedAttentionParams)   \
    X(sparse_attention, SparseAttentionParams) \
    X(moe_gate_up, MoeGateUpParams)            \
    X(moe_down, MoeDownParams)                 \
    X(moe_combine, MoeCombineParams)           \
    X(fp8_block_dequant, Fp8BlockDequantParams)

#define MMX_ASCEND_WORKSPACE_OPS(X)            \
    X(select_blocks, SelectBlocksParams)       \
    X(paged_attention, PagedAttentionParams)   \
    X(sparse_attention, SparseAttentionParams) \
    X(moe_gate_up, MoeGateUpParams)            \
    X(moe_down, MoeDownParams)

namespace mmx::ascend {

MMX_ASCEND_OPS(MMX_DECLARE_OP)
MMX_ASCEND_WORKSPACE_OPS(MMX_DECLARE_WORKSPACE)

}  // namespace mmx::ascend
