#pragma once

#include <cstdint>

#include "cpp/core/dtype.h"

namespace mmx {

/// Writes K and V of each token to its slot. slot = block_id * block_size + offset; a negative slot is
/// skipped (padding). Slots of one call are distinct.
///
/// Pages of the tokens' type get copies. e4m3 pages get codes: x / scale of the KV head, rounded to nearest
/// even, beyond the largest code (448, infinities too) the largest code; NaN stays NaN.
struct KvStoreParams {
    void* k_cache;                // [num_blocks, num_kv_heads, block_size, head_dim]
    void* v_cache;                // [num_blocks, num_kv_heads, block_size, head_dim]
    const void* k;                // [num_tokens, num_kv_heads, head_dim]
    const void* v;                // [num_tokens, num_kv_heads, head_dim]
    const int64_t* slot_mapping;  // [num_tokens]
    const float* k_scale;         // [num_kv_heads], null = 1; only for e4m3 pages
    const float* v_scale;         // [num_kv_heads], null = 1
    int64_t num_tokens, num_kv_heads, head_dim, num_blocks, block_size;
    int64_t k_token_stride, k_head_stride;
    int64_t v_token_stride, v_head_stride;
    int64_t k_cache_block_stride,
        v_cache_block_stride;  // within a block: dense [num_kv_heads, block_size, head_dim]
    DType dtype;               // of k and v
    DType cache_dtype;         // of k_cache and v_cache: dtype or e4m3
};

/// The same for index-K, which has one head and no scale.
struct IndexKStoreParams {
    void* index_k_cache;          // [num_blocks, block_size, index_dim]
    const void* index_k;          // [num_tokens, index_dim]
    const int64_t* slot_mapping;  // [num_tokens]
    int64_t num_tokens, index_dim, num_blocks, block_size;
    int64_t index_k_stride;
    int64_t cache_block_stride;  // within a block: dense [block_size, index_dim]
    DType dtype;
    DType cache_dtype;  // dtype or e4m3
};

}  // namespace mmx
