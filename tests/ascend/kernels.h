#pragma once

#include "ascend/kernels/attention.h"
#include "ascend/kernels/moe.h"
#include "ascend/kernels/moe_combine.h"
#include "ascend/kernels/norm.h"
#include "ascend/kernels/qkv.h"
#include "ascend/kernels/quant.h"
#include "ascend/kernels/selector.h"
#include "ascend/kernels/w8a8.h"

/// The AscendC kernels that run on the emulator: op, Params, kind of launch.
#define MMX_ASCEND_KERNELS(X)                             \
    X(rms_norm, RmsNormParams, kAivOnly)                  \
    X(add_rms_norm, AddRmsNormParams, kAivOnly)           \
    X(fp8_block_dequant, Fp8BlockDequantParams, kAivOnly) \
    X(dynamic_quant, DynamicQuantParams, kAivOnly)        \
    X(moe_combine, MoeCombineParams, kAivOnly)            \
    X(norm_rope_store, NormRopeStoreParams, kAivOnly)

#define MMX_ASCEND_WORKSPACE_KERNELS(X)                \
    X(moe_gate_up, MoeGateUpParams, kMix12)            \
    X(moe_down, MoeDownParams, kMix12)                 \
    X(w8a8_linear, W8A8LinearParams, kMix12)           \
    X(paged_attention, PagedAttentionParams, kMix12)   \
    X(sparse_attention, SparseAttentionParams, kMix12) \
    X(select_blocks, SelectBlocksParams, kMix12)
