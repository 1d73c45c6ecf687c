#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// Block selector of M3. Query token i of sequence s sits at position t = seq_lens[s] - q_len[s] + i. Token
/// score = index_q . index_k in fp32 for keys j <= t; block score = max over the visible tokens of the block.
/// The last `local_blocks` visible blocks and the first `init_blocks` are forced. Kept: the `topk` best by
/// (score descending, block id ascending), forced ones first; written ascending, -1 in unused places at the
/// tail. A NaN score counts as -infinity.
///
/// Pages hold the queries' type or e4m3, whose codes are the index keys: no scale, since the ranking of one
/// query's scores does not change with a common factor.
///
/// `fixed_split`: the scores of a row, and with them its selection, depend on its own query and context
/// alone, bit for bit, not on the batch or on how many tokens its sequence brings in this call.
struct SelectBlocksParams {
    int32_t* block_ids;           // [num_tokens, num_index_heads, topk] logical block ids of the sequence
    const void* index_q;          // [num_tokens, num_index_heads, index_dim]
    const void* index_k_cache;    // [num_blocks, block_size, index_dim]
    const int32_t* block_table;   // [num_seqs, max_blocks_per_seq]
    const int32_t* cu_seqlens_q;  // [num_seqs + 1]
    const int32_t* seq_lens;      // [num_seqs] length of the context including this step's tokens
    void* workspace;              // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_tokens, num_seqs, num_index_heads, index_dim;
    int64_t num_blocks, block_size, max_blocks_per_seq, topk, init_blocks, local_blocks;
    int64_t max_seqlen_q;  // an upper bound of q_len known to the host
    int64_t index_q_token_stride, index_q_head_stride;
    int64_t cache_block_stride;  // within a block: dense [block_size, index_dim]
    int64_t block_table_stride;
    DType dtype;        // of index_q
    DType cache_dtype;  // of index_k_cache: dtype or e4m3
    bool fixed_split;
};

}  // namespace mmx
