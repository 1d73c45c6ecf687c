#pragma once

#include <algorithm>

#include "cpp/core/math.h"
#include "cpp/core/params/attention.h"
#include "cuda/kernels/attention/sm90_prefill_plan.h"
#include "cuda/kernels/attention/tile_plan.h"

/// Which attention kernels serve a call and how they split it: pure functions of sizes, tested without a
/// device.
namespace mmx::cuda {

inline constexpr int64_t kDecodeMaxTopk = 64;  // blocks of a (token, KV head) that a thread block lists
inline constexpr int64_t kFixedSplits = 4;     // parts of a (token, KV head) under fixed_split, sparse
inline constexpr int64_t kSparseKeptBytes = int64_t{16} << 20;
inline constexpr int64_t kPagedMaxPartialBytes = int64_t{5} << 29;  // of the dense decode's workspace

enum class AttentionKernel { kSimple, kSm90Decode, kSm90Prefill };

/// Sizes and strides only: the launcher checks that pointers are 16-byte aligned.
inline bool sm90_attention_fits(const PagedAttentionParams& p) {
    const int64_t page_multiple = p.cache_dtype == DType::kE4M3 ? 16 : 8;
    return p.dtype == DType::kBF16 && (p.cache_dtype == DType::kBF16 || p.cache_dtype == DType::kE4M3) &&
           p.head_dim == 128 && p.block_size == 128 && p.num_heads / p.num_kv_heads <= 16 &&
           p.num_tokens <= 65535 && p.q_token_stride % 8 == 0 && p.q_head_stride % 8 == 0 &&
           p.out_token_stride % 8 == 0 && p.out_head_stride % 8 == 0 &&
           p.k_cache_block_stride % page_multiple == 0 && p.v_cache_block_stride % page_multiple == 0;
}

inline AttentionKernel choose_sparse(const SparseAttentionParams& p) {
    const PagedAttentionParams& b = p.base;
    if (!sm90_attention_fits(b) || p.topk > kDecodeMaxTopk) return AttentionKernel::kSimple;
    const bool fills_rows = b.num_heads == 16 * b.num_kv_heads && b.num_kv_heads < 256;
    // Under fixed_split all tokens take the same kernels, so that the bits of a row are the same in every
    // batch.
    return fills_rows && (b.fixed_split || choices_meet(p)) ? AttentionKernel::kSm90Prefill
                                                            : AttentionKernel::kSm90Decode;
}

/// Thread blocks (one cluster) that share the pages of one (token, KV head): as many as find a multiprocessor
/// each at the same time. `most` is how many clusters of the size do on 132 multiprocessors (as the occupancy
/// calculator says; groups of 16 or 18 hold them), or fewer where the next smaller size was faster: a second
/// round costs as much as the first.
inline int64_t sparse_decode_splits(const SparseAttentionParams& p, int64_t num_multiprocessors) {
    if (p.base.fixed_split) return kFixedSplits;
    struct Size {
        int64_t splits, most;
    };
    constexpr Size kSizes[] = {{16, 7}, {8, 15}, {6, 16}, {4, 30}, {3, 39}, {2, 66}};
    const int64_t units = p.base.num_tokens * p.base.num_kv_heads;
    for (const Size& size : kSizes)
        if (size.splits <= p.topk && units * 132 <= size.most * num_multiprocessors) return size.splits;
    return 1;
}

/// (token, KV head)s of a decode, the first ones, whose pages the L2 should keep for the next call; the
/// others' leave it first, or a stream of more than the L2 holds would leave nothing behind. Measured: 16 MB
/// are best or as good as any for streams of 4 to 537 MB.
inline int64_t sparse_kept_units(const SparseAttentionParams& p) {
    const int64_t code_bytes = p.base.cache_dtype == DType::kE4M3 ? 1 : 2;
    return kSparseKeptBytes /
           std::max<int64_t>(1, 2 * p.topk * p.base.block_size * p.base.head_dim * code_bytes);
}

/// Pages that one thread block of the dense decode takes. Longer sequences get more blocks, so that ragged
/// batches balance; short ones stay whole.
inline int64_t paged_decode_chunk(const PagedAttentionParams& p) {
    constexpr int64_t kWantedBlocks = 2 * 132;
    const int64_t units = std::max<int64_t>(1, p.num_tokens * p.num_kv_heads);
    const int64_t splits = std::max<int64_t>(1, kWantedBlocks / units);
    return std::clamp<int64_t>(ceil_div(p.max_blocks_per_seq, splits), 4, 32);
}

inline int64_t paged_decode_splits(const PagedAttentionParams& p) {
    return std::max<int64_t>(1, ceil_div(p.max_blocks_per_seq, paged_decode_chunk(p)));
}

/// A partial result: 16 rows of 128 fp32 and each row's maximum and sum.
inline constexpr int64_t kDecodePartialFloats = 16 * 128 + 2 * 16;

inline int64_t paged_partial_bytes(const PagedAttentionParams& p) {
    const int64_t splits = paged_decode_splits(p);
    return splits == 1 ? 0
                       : p.num_tokens * p.num_kv_heads * splits * kDecodePartialFloats *
                             static_cast<int64_t>(sizeof(float));
}

/// Tokens that share the workspace of one launch.
inline int64_t paged_decode_tokens(const PagedAttentionParams& p) {
    const int64_t bytes = paged_partial_bytes(p);
    if (bytes <= kPagedMaxPartialBytes) return std::max<int64_t>(1, p.num_tokens);
    return kPagedMaxPartialBytes / (bytes / p.num_tokens);
}

/// Chunks of prompts, and what is batched with them, go through row tiles; under fixed_split all tokens do,
/// so that the bits of a row are the same in every batch. Drafts are decoded one token at a time as long as
/// the partial results stay bounded.
inline AttentionKernel choose_paged(const PagedAttentionParams& p) {
    if (!sm90_attention_fits(p)) return AttentionKernel::kSimple;
    if (p.fixed_split) return AttentionKernel::kSm90Prefill;
    const bool decode = p.max_seqlen_q < kDenseMinQueryLen && paged_partial_bytes(p) <= kPagedMaxPartialBytes;
    return decode ? AttentionKernel::kSm90Decode : AttentionKernel::kSm90Prefill;
}

inline int64_t sparse_workspace_bytes(const SparseAttentionParams& p) {
    return choose_sparse(p) == AttentionKernel::kSm90Prefill ? make_prefill_plan(p).total : 0;
}

inline int64_t paged_workspace_bytes(const PagedAttentionParams& p) {
    switch (choose_paged(p)) {
        case AttentionKernel::kSm90Decode: return std::min(paged_partial_bytes(p), kPagedMaxPartialBytes);
        case AttentionKernel::kSm90Prefill: return make_dense_plan(p).total;
        case AttentionKernel::kSimple: break;
    }
    return 0;
}

}  // namespace mmx::cuda
