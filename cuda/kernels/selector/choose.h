#pragma once

#include <algorithm>

#include "cpp/core/math.h"
#include "cpp/core/params/selector.h"

/// Which selector kernels serve a call: pure functions of sizes, tested without a device.
namespace mmx::cuda {

inline constexpr int64_t kSelectMaxBlocks = 8192;  // blocks of one sequence that the top-k kernel can rank
inline constexpr int64_t kSelectMaxSeqs = 1024;    // sequences whose prefix sums the decode kernel holds
inline constexpr int64_t kSelectDecodeColumns =
    32;  // (query token, head) pairs of a sequence in one pass over K

inline constexpr int64_t kSelectTileRows = 256;   // (query token, head) rows of a prefill tile
inline constexpr int64_t kSelectMaxTiles = 1024;  // row tiles whose prefix sums a thread block holds
inline constexpr int64_t kSelectMaxPrefillSeqs = 64;
inline constexpr int64_t kSelectMaxScoreBytes = int64_t{1} << 31;

enum class SelectKernel { kSimple, kSm90Decode, kSm90Prefill };

/// Row tiles of a prefill, at most: each sequence may leave one partly empty.
inline int64_t select_max_tiles(const SelectBlocksParams& p) {
    return ceil_div(p.num_tokens, kSelectTileRows / p.num_index_heads) + p.num_seqs;
}

/// Floats between the block scores of two (token, head) rows in the workspace.
inline int64_t select_score_stride(const SelectBlocksParams& p) { return align_up(p.max_blocks_per_seq, 4); }

inline int64_t select_score_bytes(const SelectBlocksParams& p) {
    return p.num_tokens * p.num_index_heads * select_score_stride(p) * static_cast<int64_t>(sizeof(float));
}

/// Strides and sizes only: pointers of torch tensors and of the engine's buffers are 16-byte aligned, and the
/// launcher checks them.
inline SelectKernel choose_select(const SelectBlocksParams& p) {
    const bool codes = p.cache_dtype == DType::kE4M3;
    const bool fits = p.dtype == DType::kBF16 && (codes || p.cache_dtype == DType::kBF16) &&
                      p.index_dim == 128 && p.block_size == 128 && p.max_blocks_per_seq <= kSelectMaxBlocks &&
                      p.index_q_token_stride % 8 == 0 && p.index_q_head_stride % 8 == 0 &&
                      p.cache_block_stride % (codes ? 16 : 8) == 0;
    if (!fits) return SelectKernel::kSimple;
    // Prompts too go through the decode kernel, which re-reads K for every few tokens: the prefill kernel
    // neither reads codes nor gives a score the bits that it has in another batch.
    const bool decodes_only = codes || p.fixed_split;
    const bool decodes = decodes_only ? select_score_bytes(p) <= kSelectMaxScoreBytes
                                      : p.max_seqlen_q * p.num_index_heads <= kSelectDecodeColumns;
    if (decodes && p.num_seqs <= kSelectMaxSeqs && p.num_index_heads <= kSelectDecodeColumns)
        return SelectKernel::kSm90Decode;
    if (decodes_only) return SelectKernel::kSimple;
    if (kSelectTileRows % p.num_index_heads == 0 && p.num_seqs <= kSelectMaxPrefillSeqs &&
        select_max_tiles(p) <= kSelectMaxTiles && select_score_bytes(p) <= kSelectMaxScoreBytes)
        return SelectKernel::kSm90Prefill;
    return SelectKernel::kSimple;
}

inline int64_t select_workspace_bytes(const SelectBlocksParams& p) {
    return choose_select(p) == SelectKernel::kSimple ? 0 : select_score_bytes(p);
}

}  // namespace mmx::cuda
