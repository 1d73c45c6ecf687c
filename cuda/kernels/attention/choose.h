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
// Sparse decodes under fixed_split have a thread block per choice, up to kFixedChoices of them. A
// multiprocessor holds only two with bf16 pages: row tiles are as fast at 128 (token, KV head)s (measured).
inline constexpr int64_t kFixedChoices = 16, kFixedMaxBF16Units = 96;
inline constexpr int64_t kFewPages = 16;  // chosen blocks of which thread blocks copy one or two on their own
// Bytes of K and V that the L2 should keep for the next sparse decode (sparse_kept_units).
inline constexpr int64_t kSparseKeptBytes = int64_t{16} << 20;
// Dense decode.
inline constexpr int64_t kPagedDecodeBlocks = 2 * 132;  // thread blocks of a launch, two a multiprocessor
inline constexpr int64_t kPagedDecodeTokens = 224;  // of a launch; their list has the memory that pages leave
inline constexpr int64_t kPagedMaxChunkedUnits = 132;  // (token, KV head)s of which each is cut into chunks
inline constexpr int64_t kPagedMaxDraftTokens = 8192;  // more drafts than these go through row tiles

enum class AttentionKernel { kSimple, kSm90Decode, kSm90Prefill };

/// Sizes and strides only: the launcher checks that pointers are 16-byte aligned.
inline bool sm90_attention_fits(const PagedAttentionParams& p) {
    const int64_t page_multiple = p.cache_dtype == DType::kE4M3 ? 16 : 8;
    return p.dtype == DType::kBF16 && (p.cache_dtype == DType::kBF16 || p.cache_dtype == DType::kE4M3) &&
           p.head_dim == 128 && p.block_size == 128 && p.num_heads / p.num_kv_heads <= 16 &&
           p.num_tokens <= 65535 && p.num_seqs <= 65535 && p.q_token_stride % 8 == 0 &&
           p.q_head_stride % 8 == 0 && p.out_token_stride % 8 == 0 && p.out_head_stride % 8 == 0 &&
           p.k_cache_block_stride % page_multiple == 0 && p.v_cache_block_stride % page_multiple == 0;
}

/// Whether query heads fill the rows of the kernels that are made for 16 per KV head.
inline bool fills_rows(const SparseAttentionParams& p) {
    return p.base.num_heads == 16 * p.base.num_kv_heads && p.base.num_kv_heads < 256;
}

inline AttentionKernel choose_sparse(const SparseAttentionParams& p) {
    const PagedAttentionParams& b = p.base;
    if (!sm90_attention_fits(b) || p.topk > kDecodeMaxTopk) return AttentionKernel::kSimple;
    if (!fills_rows(p)) return AttentionKernel::kSm90Decode;
    if (choices_meet(p)) return AttentionKernel::kSm90Prefill;
    // Under fixed_split both give a row the same bits.
    const bool decodes =
        !b.fixed_split || (p.topk <= kFixedChoices && (b.cache_dtype == DType::kE4M3 ||
                                                       b.num_tokens * b.num_kv_heads <= kFixedMaxBF16Units));
    return decodes ? AttentionKernel::kSm90Decode : AttentionKernel::kSm90Prefill;
}

/// Thread blocks (one cluster) that share the pages of one (token, KV head), and how many of them a
/// multiprocessor holds.
struct SparseSplit {
    int64_t blocks, per_multiprocessor;
    bool operator==(const SparseSplit&) const = default;
};

/// As many blocks as run at the same time: a second round costs as much as the first. `most` is how many
/// clusters of the size do on 132 multiprocessors (as the occupancy calculator says; groups of 16 or 18 hold
/// them), or fewer where the next size was faster.
inline SparseSplit sparse_decode_split(const SparseAttentionParams& p, int64_t num_multiprocessors) {
    if (p.base.fixed_split) return {kFixedSplits, 1};
    struct Size {
        SparseSplit split;
        int64_t most;
    };
    const int64_t pairs = p.base.cache_dtype == DType::kE4M3 ? 32 : 40;
    const Size sizes[] = {{{16, 1}, 7}, {{8, 1}, 15},    {{6, 1}, 16},
                          {{4, 1}, 30}, {{6, 2}, pairs}, {{2, 1}, 66}};
    const int64_t units = p.base.num_tokens * p.base.num_kv_heads;
    for (const Size& size : sizes)
        if (size.split.blocks <= p.topk && units * 132 <= size.most * num_multiprocessors) return size.split;
    return {1, 1};
}

/// Whether each thread block has so few pages that it is faster without a feeding warp (measured).
inline bool few_pages(const SparseAttentionParams& p, const SparseSplit& split) {
    const bool codes = p.base.cache_dtype == DType::kE4M3;
    return !p.base.fixed_split && p.topk <= kFewPages && split.blocks >= (codes ? 8 : 16);
}

/// (token, KV head)s of a decode, the first ones, whose pages the L2 should keep for the next call; the
/// others' leave it first, or a stream of more than the L2 holds would leave nothing behind. Measured: 16 MB
/// are best or as good as any for streams of 4 to 537 MB.
inline int64_t sparse_kept_units(const SparseAttentionParams& p) {
    const int64_t code_bytes = p.base.cache_dtype == DType::kE4M3 ? 1 : 2;
    return kSparseKeptBytes /
           std::max<int64_t>(1, 2 * p.topk * p.base.block_size * p.base.head_dim * code_bytes);
}

/// A partial result: 16 rows of 128 fp32 and each row's maximum and sum.
inline constexpr int64_t kDecodePartialFloats = 16 * 128 + 2 * 16;

inline int64_t paged_partial_bytes(const PagedAttentionParams& p) {
    return p.max_blocks_per_seq <= 1
               ? 0
               : kPagedDecodeBlocks * 2 * kDecodePartialFloats * static_cast<int64_t>(sizeof(float));
}

/// Chunks of prompts, and what is batched with them, go through row tiles, many drafts too; under fixed_split
/// all tokens do, so that the bits of a row are the same in every batch. Few drafts are decoded one token at
/// a time.
inline AttentionKernel choose_paged(const PagedAttentionParams& p) {
    if (!sm90_attention_fits(p)) return AttentionKernel::kSimple;
    if (p.fixed_split) return AttentionKernel::kSm90Prefill;
    const bool decode =
        p.max_seqlen_q == 1 || (p.max_seqlen_q < kDenseMinQueryLen && p.num_tokens <= kPagedMaxDraftTokens);
    return decode ? AttentionKernel::kSm90Decode : AttentionKernel::kSm90Prefill;
}

inline int64_t sparse_workspace_bytes(const SparseAttentionParams& p) {
    return choose_sparse(p) == AttentionKernel::kSm90Prefill ? make_prefill_plan(p).total : 0;
}

inline int64_t paged_workspace_bytes(const PagedAttentionParams& p) {
    switch (choose_paged(p)) {
        case AttentionKernel::kSm90Decode: return paged_partial_bytes(p);
        case AttentionKernel::kSm90Prefill: return make_dense_plan(p).total;
        case AttentionKernel::kSimple: break;
    }
    return 0;
}

}  // namespace mmx::cuda
