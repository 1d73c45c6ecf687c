#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"
#include "cpp/core/params/comm.h"

namespace mmx {

/// What lies between a merged projection and attention over pages, in one pass: q, k, index-q and index-k are
/// normed (`RmsNormParams`) and rotated (`RopeParams`), each step rounded to `dtype` as the single ops round;
/// k, v and index-k go to their slots (`KvStoreParams`, `IndexKStoreParams`). q and index-q are left in
/// `qkv`; k and index-k there are unspecified afterwards, v is unchanged. A negative slot stores nothing.
///
/// A norm weight of head_dim elements norms each head alone (M3), one of all heads' elements norms q, and k,
/// over the whole projection (M2; any weight with `mean_squares`); index heads are always normed alone.
struct NormRopeStoreParams {
    void* qkv;      // [num_tokens, heads, head_dim]: q | k | v, with an indexer q | k | index_q | index_k | v
    void* k_cache;  // [num_blocks, num_kv_heads, block_size, head_dim]
    void* v_cache;  // [num_blocks, num_kv_heads, block_size, head_dim]
    void* index_k_cache;          // [num_blocks, block_size, head_dim]; null without an indexer
    const void* q_weight;         // [head_dim] or [num_heads * head_dim]
    const void* k_weight;         // [head_dim] or [num_kv_heads * head_dim]
    const void* index_q_weight;   // [head_dim]
    const void* index_k_weight;   // [head_dim]
    const float* cos_sin;         // [max_positions, rotary_dim]: cos of rotary_dim/2 angles, then their sin
    const int64_t* positions;     // [num_tokens], each in [0, max_positions)
    const int64_t* slot_mapping;  // [num_tokens]
    const float* k_scale;         // [num_kv_heads], null = 1; only for e4m3 pages
    const float* v_scale;         // [num_kv_heads], null = 1
    const float* mean_squares;    // [num_tokens, 2] of q and k for a norm over the whole projection, of which
                                  // other ranks hold parts; null: of the heads that are here
    int64_t num_tokens, num_heads, num_kv_heads, num_index_heads, head_dim, rotary_dim, max_positions;
    int64_t num_blocks, block_size;
    int64_t qkv_stride;                                  // of a token; heads are packed
    int64_t k_cache_block_stride, v_cache_block_stride;  // within a block: dense
    int64_t index_k_cache_block_stride;                  // within a block: dense
    float eps;
    bool gemma;
    bool norm_whole_projection;
    DType dtype;  // of qkv
    DType weight_dtype;
    DType cache_dtype;        // of k_cache and v_cache: dtype or e4m3
    DType index_cache_dtype;  // of index_k_cache: dtype or e4m3
};

/// Mean squares of q and of k over all heads, of which each rank holds one of `num_parts` equally wide parts:
/// sum of squares / (width of the part * num_parts), summed over the ranks in their order. One rank needs no
/// inboxes: its own share is what it gets.
struct QkMeanSquaresParams {
    float* out;       // [num_tokens, 2]
    const void* qkv;  // [num_tokens, heads, head_dim]: q | k | anything
    Peers peers;      // rows of 2 words
    int64_t num_tokens, num_heads, num_kv_heads, head_dim;
    int64_t qkv_stride;  // of a token; heads are packed
    int64_t num_parts;
    DType dtype;  // of qkv
};

}  // namespace mmx
