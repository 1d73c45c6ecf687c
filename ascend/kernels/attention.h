#pragma once

#include "ascend/kernels/attention_cube.h"
#include "ascend/kernels/attention_vector.h"

/// paged_attention and sparse_attention. A task is a run of query tokens of one sequence under one KV head;
/// its context goes by in chunks of 512 keys: the cube makes scores, the vector cores softmax weights, the
/// cube their product with V, the vector cores the running output. Cube and vector cores hand each other
/// chunks through two slots in global memory; the cube scores chunk i + 1 before it weighs chunk i.
namespace mmx::ascend {

inline AttentionTiling attention_tiling(const char* op, const PagedAttentionParams& p,
                                        const int32_t* block_ids, int64_t topk, const Cores& cores) {
    require_bf16(op, "q", p.dtype);
    MMX_CHECK(p.cache_dtype == DType::kBF16, op, ": on Ascend k_cache must be bfloat16, got ",
              dtype_name(p.cache_dtype));
    MMX_CHECK(p.head_dim % 16 == 0 && p.head_dim <= kMaxHeadDim, op,
              ": on Ascend head_dim must be a multiple of 16 up to ", kMaxHeadDim, ", got ", p.head_dim);
    MMX_CHECK(p.block_size % 16 == 0 && p.block_size <= 128 && kChunk % p.block_size == 0, op,
              ": on Ascend block_size must be 16, 32, 64 or 128, got ", p.block_size);
    const int64_t group = p.num_heads / p.num_kv_heads;
    MMX_CHECK(group <= kRows, op, ": on Ascend at most ", kRows, " query heads may share a KV head, got ",
              group);
    MMX_CHECK(p.q_head_stride <= 65535, op,
              ": on Ascend q's heads must lie at most 65535 elements apart, got ", p.q_head_stride);
    MMX_CHECK(!p.codes, op, ": on Ascend results are not quantised, but codes are asked for");
    MMX_CHECK(p.scale > 0, op, ": on Ascend scale must be positive, got ", p.scale);
    AttentionTiling t{};
    t.p = p;
    t.block_ids = block_ids;
    t.topk = topk;
    t.group = static_cast<uint32_t>(group);
    // Lists differ per token, so a sparse task is one token.
    t.tile_tokens = block_ids ? 1
                              : static_cast<uint32_t>(std::clamp<int64_t>(
                                    kRows / group, 1, std::max<int64_t>(p.max_seqlen_q, 1)));
    const int64_t tiles =
        block_ids ? p.num_tokens : p.num_seqs * ceil_div(std::max<int64_t>(p.max_seqlen_q, 1), t.tile_tokens);
    const int64_t tasks = std::max<int64_t>(tiles * p.num_kv_heads, 1);
    const int64_t blocks = block_ids ? topk : p.max_blocks_per_seq;
    // Why not the cores of this chip: the sum of a row must not depend on the bin. 24 is the largest.
    t.num_splits = p.fixed_split ? 1
                                 : static_cast<uint32_t>(std::clamp<int64_t>(
                                       24 / tasks, 1, std::min<int64_t>(blocks, kMaxSplits)));
    t.num_blocks = cores.aic;
    t.score_offset = 0;
    t.weight_offset = t.score_offset + cores.aic * 2 * kScoreBytes;
    t.product_offset = t.weight_offset + cores.aic * 2 * kWeightBytes;
    t.part_offset = t.product_offset + cores.aic * 2 * kProductBytes;
    t.workspace_bytes = t.part_offset + (t.num_splits > 1 ? tasks * t.num_splits * kPartBytes : 0);
    return t;
}

inline AttentionTiling paged_attention_tiling(const PagedAttentionParams& p, const Cores& cores) {
    return attention_tiling("paged_attention", p, nullptr, 0, cores);
}
inline AttentionTiling sparse_attention_tiling(const SparseAttentionParams& p, const Cores& cores) {
    return attention_tiling("sparse_attention", p.base, p.block_ids, p.topk, cores);
}
inline int64_t paged_attention_workspace_bytes(const PagedAttentionParams& p, const Cores& cores) {
    return paged_attention_tiling(p, cores).workspace_bytes;
}
inline int64_t sparse_attention_workspace_bytes(const SparseAttentionParams& p, const Cores& cores) {
    return sparse_attention_tiling(p, cores).workspace_bytes;
}

__aicore__ inline void attention_kernel(const AttentionTiling& t) {
    TPipe pipe;
    if ASCEND_IS_AIC {
        AttentionCube(pipe, t).process();
        if (t.num_splits > 1) SyncAll<false>();
    } else {
        AttentionVector vector(pipe, t);
        vector.process();
        if (t.num_splits > 1) {
            SyncAll<false>();
            vector.merge();
        }
    }
}
__aicore__ inline void paged_attention_kernel(const AttentionTiling& t) { attention_kernel(t); }
__aicore__ inline void sparse_attention_kernel(const AttentionTiling& t) { attention_kernel(t); }

}  // namespace mmx::ascend
