#pragma once

#include <utility>

#include "cpp/ops/backend.h"

namespace mmx::ops {

inline SelectBlocksParams select_blocks_params(Matcher& m, const Tensor& block_ids, const Tensor& index_q,
                                               const Tensor& index_k_cache, const Tensor& block_table,
                                               const Tensor& cu_seqlens_q, const Tensor& seq_lens,
                                               int64_t max_seqlen_q, int64_t init_blocks,
                                               int64_t local_blocks, bool fixed_split) {
    m.shape("index_q", index_q, {"num_tokens", "num_index_heads", "index_dim"})
        .shape("index_k_cache", index_k_cache, {"num_blocks", "block_size", "index_dim"}, 2)
        .shape("block_ids", block_ids, {"num_tokens", "num_index_heads", "topk"}, 3)
        .shape("block_table", block_table, {"num_seqs", "max_blocks_per_seq"})
        .shape("seq_lens", seq_lens, {"num_seqs"})
        .shape("cu_seqlens_q", cu_seqlens_q, {m["num_seqs"] + 1});
    const DType dtype = m.dtype("index_q", index_q, kFloat);
    for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"block_ids", block_ids},
                                  {"block_table", block_table},
                                  {"cu_seqlens_q", cu_seqlens_q},
                                  {"seq_lens", seq_lens}})
        m.same_dtype(name, t, DType::kI32);
    m.require(init_blocks >= 0 && local_blocks >= 1 && init_blocks + local_blocks <= m["topk"],
              "init_blocks=", init_blocks, " and local_blocks=", local_blocks,
              " must be at least 0 and 1 and fit into topk=", m["topk"]);
    return {
        .block_ids = ptr<int32_t>(block_ids),
        .index_q = ptr(index_q),
        .index_k_cache = ptr(index_k_cache),
        .block_table = ptr<int32_t>(block_table),
        .cu_seqlens_q = ptr<int32_t>(cu_seqlens_q),
        .seq_lens = ptr<int32_t>(seq_lens),
        .workspace = nullptr,
        .workspace_bytes = 0,
        .num_tokens = m["num_tokens"],
        .num_seqs = m["num_seqs"],
        .num_index_heads = m["num_index_heads"],
        .index_dim = m["index_dim"],
        .num_blocks = m["num_blocks"],
        .block_size = m["block_size"],
        .max_blocks_per_seq = m["max_blocks_per_seq"],
        .topk = m["topk"],
        .init_blocks = init_blocks,
        .local_blocks = local_blocks,
        .max_seqlen_q = max_seqlen_q,
        .index_q_token_stride = index_q.stride(0),
        .index_q_head_stride = index_q.stride(1),
        .cache_block_stride = index_k_cache.stride(0),
        .block_table_stride = block_table.stride(0),
        .dtype = dtype,
        .cache_dtype = m.dtype("index_k_cache", index_k_cache, {dtype, DType::kE4M3}),
        .fixed_split = fixed_split,
    };
}

template <class B>
int64_t select_blocks_workspace(const Tensor& block_ids, const Tensor& index_q, const Tensor& index_k_cache,
                                const Tensor& block_table, const Tensor& cu_seqlens_q, const Tensor& seq_lens,
                                int64_t max_seqlen_q, int64_t init_blocks, int64_t local_blocks,
                                bool fixed_split) {
    Matcher m("select_blocks");
    const SelectBlocksParams p =
        select_blocks_params(m, block_ids, index_q, index_k_cache, block_table, cu_seqlens_q, seq_lens,
                             max_seqlen_q, init_blocks, local_blocks, fixed_split);
    return p.num_tokens == 0 ? 0 : B::select_blocks_workspace(p);
}

template <class B>
void select_blocks(const Tensor& block_ids, const Tensor& index_q, const Tensor& index_k_cache,
                   const Tensor& block_table, const Tensor& cu_seqlens_q, const Tensor& seq_lens,
                   const Tensor& workspace, int64_t max_seqlen_q, int64_t init_blocks, int64_t local_blocks,
                   bool fixed_split) {
    Matcher m("select_blocks");
    SelectBlocksParams p =
        select_blocks_params(m, block_ids, index_q, index_k_cache, block_table, cu_seqlens_q, seq_lens,
                             max_seqlen_q, init_blocks, local_blocks, fixed_split);
    if (p.num_tokens == 0) return;
    set_workspace(m, p, workspace, B::select_blocks_workspace(p));
    B::enqueue(m.device_index(), &B::select_blocks, p);
}

}  // namespace mmx::ops
