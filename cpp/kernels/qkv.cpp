#include <vector>

#include "cpp/kernels/launchers.h"
#include "cpp/kernels/peers.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

/// A run of neighbouring heads of the merged projection.
struct Heads {
    char* data;  // [num_tokens, count, head_dim], tokens qkv_stride apart
    int64_t count;
};

/// The norm over a projection of which other ranks hold parts, by the mean square of all of them: those at
/// mean_squares[2 * token].
void norm_by(const NormRopeStoreParams& p, const Heads& heads, const void* weight,
             const float* mean_squares) {
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype, [&](auto w) {
            const int64_t width = heads.count * p.head_dim;
            const auto* gain = static_cast<const decltype(w)*>(weight);
            const float shift = p.gemma ? 1.0f : 0.0f;
            parallel_for(p.num_tokens, ceil_div(4096, width), [&](int64_t begin, int64_t end) {
                for (int64_t token = begin; token < end; ++token) {
                    auto* row = reinterpret_cast<decltype(t)*>(heads.data) + token * p.qkv_stride;
                    const float inv_rms = 1.0f / std::sqrt(mean_squares[2 * token] + p.eps);
                    for (int64_t i = 0; i < width; ++i)
                        row[i] =
                            from_float<decltype(t)>(to_float(row[i]) * inv_rms * (to_float(gain[i]) + shift));
                }
            });
        });
    });
}

}  // namespace

void qk_mean_squares(const QkMeanSquaresParams& p, Stream) {
    const Peers& peers = p.peers;
    const int64_t width[2] = {p.num_heads * p.head_dim, p.num_kv_heads * p.head_dim};
    dispatch_float(p.dtype, [&](auto t) {
        parallel_for(p.num_tokens, ceil_div(4096, width[0] + width[1]), [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; ++token) {
                const auto* row = static_cast<const decltype(t)*>(p.qkv) + token * p.qkv_stride;
                for (int i = 0; i < 2; ++i)
                    p.out[2 * token + i] = sum_of_squares(row + i * width[0], width[i]) /
                                           static_cast<float>(width[i] * p.num_parts);
            }
        });
    });
    if (peers.num_ranks == 1) return;
    std::vector<uint32_t> epochs(p.num_tokens);
    for (int64_t token = 0; token < p.num_tokens; ++token) {
        epochs[token] = begin_exchange(peers, token);
        send_row(peers, epochs[token], token, p.out + 2 * token, 2);
    }
    for (int64_t token = 0; token < p.num_tokens; ++token) {
        float total[2] = {};
        for (int64_t r = 0; r < peers.num_ranks; ++r) {
            float part[2] = {p.out[2 * token], p.out[2 * token + 1]};
            if (r != peers.rank) receive_row("qk_mean_squares", peers, epochs[token], r, token, part, 2);
            for (int i = 0; i < 2; ++i) total[i] += part[i];
        }
        for (int i = 0; i < 2; ++i) p.out[2 * token + i] = total[i];
    }
}

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
    if (p.mean_squares) {
        norm_by(p, q, p.q_weight, p.mean_squares);
        norm_by(p, k, p.k_weight, p.mean_squares + 1);
    } else {
        norm(q, p.q_weight, p.norm_whole_projection);
        norm(k, p.k_weight, p.norm_whole_projection);
    }
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
