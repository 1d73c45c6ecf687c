#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"
#include "cpp/core/params/fp8.h"

namespace mmx {

/// Causal grouped-query attention over paged K and V; query token i of sequence s sits at position
/// t = seq_lens[s] - q_len[s] + i and sees keys j <= t; query head h uses KV head h / (num_heads /
/// num_kv_heads). Scores, softmax and sums in fp32.
///
/// Pages hold f32, bf16 or e4m3. An e4m3 page holds codes: K = code * k_scale[kv_head], V = code *
/// v_scale[kv_head], one pair of f32 vectors per layer. The k scale multiplies scores, the v scale outputs,
/// so codes are used as they are.
///
/// `fixed_split`: the result of a row is a function of its own query, context and chosen blocks alone, bit
/// for bit: not of the batch, of how many tokens its sequence brings in this call, nor of max_blocks_per_seq.
/// The context is then cut at fixed positions and the parts are merged in a fixed order. Without it the
/// cuts may follow the number of tokens and of multiprocessors; a repeated call still gives the same bits.
/// The CPU kernels always do the former.
///
/// With `codes`, paged_attention also gives what fp8_quantize makes of its result; out_head_stride is then
/// head_dim, and num_heads * head_dim a multiple of 128.
struct PagedAttentionParams {
    void* out;                    // [num_tokens, num_heads, head_dim]
    const void* q;                // [num_tokens, num_heads, head_dim]
    const void* k_cache;          // [num_blocks, num_kv_heads, block_size, head_dim]
    const void* v_cache;          // [num_blocks, num_kv_heads, block_size, head_dim]
    const int32_t* block_table;   // [num_seqs, max_blocks_per_seq]
    const int32_t* cu_seqlens_q;  // [num_seqs + 1]
    const int32_t* seq_lens;      // [num_seqs] length of the context including this step's tokens
    void* workspace;              // [workspace_bytes] scratch, or null when workspace_bytes is 0
    int64_t workspace_bytes;
    int64_t num_tokens, num_seqs, num_heads, num_kv_heads, head_dim;
    int64_t num_blocks, block_size, max_blocks_per_seq;
    int64_t max_seqlen_q;  // an upper bound of q_len known to the host
    int64_t out_token_stride, out_head_stride;
    int64_t q_token_stride, q_head_stride;
    int64_t k_cache_block_stride,
        v_cache_block_stride;  // within a block: dense [num_kv_heads, block_size, head_dim]
    int64_t block_table_stride;
    const float* k_scale;  // [num_kv_heads], null = 1; only for e4m3 pages
    const float* v_scale;  // [num_kv_heads], null = 1
    float scale;
    DType dtype;        // of out and q
    DType cache_dtype;  // of k_cache and v_cache: dtype or e4m3
    bool fixed_split;
    void* codes;         // [num_tokens, num_heads * head_dim] e4m3, or null
    float* codes_scale;  // [num_tokens, num_heads * head_dim / 128], or null
};

/// Of the fp8_quantize that makes `codes` of a result that is there.
constexpr Fp8QuantizeParams codes_params(const PagedAttentionParams& p) {
    return {.out = p.codes,
            .scale = p.codes_scale,
            .x = p.out,
            .rows = p.num_tokens,
            .cols = p.num_heads * p.head_dim,
            .x_stride = p.out_token_stride,
            .dtype = p.dtype};
}

/// The same restricted to the blocks chosen per (token, KV head).
struct SparseAttentionParams {
    PagedAttentionParams base;
    const int32_t* block_ids;  // [num_tokens, num_kv_heads, topk] logical ids, ascending, -1 at the tail
    int64_t topk;
};

}  // namespace mmx
