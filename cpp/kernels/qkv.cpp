#include "cpp/kernels/common.h"

namespace mmx::cpu::MMX_CPU_ISA {

// The single ops, at this instruction set level.
MMX_OPS(MMX_DECLARE_OP)

namespace {

/// A run of neighbouring heads of the merged projection.
struct Heads {
    char* data;
    int64_t count;
};

}  // namespace

/// Why a sequence of the single ops: the rows stay in the cache between them, and the results are theirs.
void norm_rope_store(const NormRopeStoreParams& p, Stream stream) {
    const int64_t head_bytes = p.head_dim * dtype_bytes(p.dtype);
    char* next = static_cast<char*>(p.qkv);
    const auto take = [&](int64_t count) {
        const Heads heads{next, count};
        next += count * head_bytes;
        return heads;
    };
    const Heads q = take(p.num_heads), k = take(p.num_kv_heads), index_q = take(p.num_index_heads);
    const Heads index_k = take(p.index_k_cache ? 1 : 0), v = take(p.num_kv_heads);

    const auto norm = [&](const Heads& heads, const void* weight, bool whole) {
        if (heads.count == 0) return;
        rms_norm({.out = heads.data,
                  .x = heads.data,
                  .weight = weight,
                  .num_tokens = p.num_tokens,
                  .num_heads = whole ? 1 : heads.count,
                  .hidden = whole ? heads.count * p.head_dim : p.head_dim,
                  .out_token_stride = p.qkv_stride,
                  .out_head_stride = p.head_dim,
                  .x_token_stride = p.qkv_stride,
                  .x_head_stride = p.head_dim,
                  .eps = p.eps,
                  .gemma = p.gemma,
                  .dtype = p.dtype,
                  .weight_dtype = p.weight_dtype},
                 stream);
    };
    norm(q, p.q_weight, p.norm_whole_projection);
    norm(k, p.k_weight, p.norm_whole_projection);
    norm(index_q, p.index_q_weight, false);
    norm(index_k, p.index_k_weight, false);
    rope({.out = p.qkv,
          .x = p.qkv,
          .cos_sin = p.cos_sin,
          .positions = p.positions,
          .num_tokens = p.num_tokens,
          .num_heads = q.count + k.count + index_q.count + index_k.count,
          .head_dim = p.head_dim,
          .rotary_dim = p.rotary_dim,
          .max_positions = p.max_positions,
          .out_token_stride = p.qkv_stride,
          .out_head_stride = p.head_dim,
          .x_token_stride = p.qkv_stride,
          .x_head_stride = p.head_dim,
          .dtype = p.dtype},
         stream);
    kv_store({.k_cache = p.k_cache,
              .v_cache = p.v_cache,
              .k = k.data,
              .v = v.data,
              .slot_mapping = p.slot_mapping,
              .k_scale = p.k_scale,
              .v_scale = p.v_scale,
              .num_tokens = p.num_tokens,
              .num_kv_heads = p.num_kv_heads,
              .head_dim = p.head_dim,
              .num_blocks = p.num_blocks,
              .block_size = p.block_size,
              .k_token_stride = p.qkv_stride,
              .k_head_stride = p.head_dim,
              .v_token_stride = p.qkv_stride,
              .v_head_stride = p.head_dim,
              .k_cache_block_stride = p.k_cache_block_stride,
              .v_cache_block_stride = p.v_cache_block_stride,
              .dtype = p.dtype,
              .cache_dtype = p.cache_dtype},
             stream);
    if (p.index_k_cache)
        index_k_store({.index_k_cache = p.index_k_cache,
                       .index_k = index_k.data,
                       .slot_mapping = p.slot_mapping,
                       .num_tokens = p.num_tokens,
                       .index_dim = p.head_dim,
                       .num_blocks = p.num_blocks,
                       .block_size = p.block_size,
                       .index_k_stride = p.qkv_stride,
                       .cache_block_stride = p.index_k_cache_block_stride,
                       .dtype = p.dtype,
                       .cache_dtype = p.index_cache_dtype},
                      stream);
}

}  // namespace mmx::cpu::MMX_CPU_ISA
