#pragma once

#include <algorithm>

#include "cpp/core/math.h"
#include "cpp/core/params/selector.h"

/// Which selector kernels serve a call: pure functions of sizes, tested without a device.
namespace mmx::cuda {

inline constexpr int64_t kSelectMaxBlocks = 8192;  // blocks of one sequence that the top-k kernel can rank
inline constexpr int64_t kSelectMaxSeqs = 1024;    // sequences whose prefix sums the decode kernel holds
// (query token, head) pairs of a sequence in one pass over K
inline constexpr int64_t kSelectDecodeColumns = 32;

inline constexpr int64_t kSelectResidentBytes = int64_t{48} << 20;  // index-K that the L2 holds as a whole

inline constexpr int64_t kSelectTileRows = 256;   // (query token, head) rows of a prefill tile
inline constexpr int64_t kSelectMaxTiles = 1024;  // row tiles whose prefix sums a thread block holds
inline constexpr int64_t kSelectMaxPrefillSeqs = 256;
inline constexpr int64_t kSelectMaxScoreBytes = int64_t{1} << 31;

inline constexpr int64_t kSelectMaxPrefillGrid = 132;  // thread blocks of a prefill
inline constexpr int64_t kSelectKept = 16;             // best blocks of a stretch of pages that a list holds
inline constexpr int64_t kSelectListBlocks = 256;      // from here on lists instead of a score per block
// Stretches of one row tile, at most: what the ranking kernel holds per row. Few row tiles need more of them
// to fill the chip, and have few rows to rank.
inline constexpr int64_t kSelectFewStretches = 16, kSelectManyStretches = 64;
inline constexpr int64_t kSelectManyTiles = 48;

enum class SelectKernel { kSimple, kSm90Decode, kSm90Prefill, kSm90PrefillLists };

/// A block that a list holds: its score as an integer above 0 (0: an empty place), lists ascend in blocks.
struct SelectCandidate {
    uint32_t key;
    int32_t block;
};

/// The stretches that the pages of a row tile were cut into.
struct SelectSpan {
    int32_t first, last;
};

struct SelectLists {
    SelectSpan* spans;            // [row tile]
    SelectCandidate* candidates;  // [stretch, kSelectTileRows, kSelectKept]
    int max_stretches;            // of a row tile

    constexpr SelectCandidate* stretch(int64_t i) const {
        return candidates + i * kSelectTileRows * kSelectKept;
    }
};

/// Row tiles of a prefill, at most: each sequence may leave one partly empty.
inline int64_t select_max_tiles(const SelectBlocksParams& p) {
    return ceil_div(p.num_tokens, kSelectTileRows / p.num_index_heads) + p.num_seqs;
}

/// Floats between the block scores of two (token, head) rows in the workspace.
inline int64_t select_score_stride(const SelectBlocksParams& p) { return align_up(p.max_blocks_per_seq, 4); }

inline int64_t select_score_bytes(const SelectBlocksParams& p) {
    return p.num_tokens * p.num_index_heads * select_score_stride(p) * static_cast<int64_t>(sizeof(float));
}

inline int64_t select_spans_bytes(const SelectBlocksParams& p) {
    return align_up(select_max_tiles(p) * static_cast<int64_t>(sizeof(SelectSpan)), 256);
}

/// A stretch ends where a row tile or the share of a thread block does.
inline int64_t select_lists_bytes(const SelectBlocksParams& p) {
    return select_spans_bytes(p) + (select_max_tiles(p) + kSelectMaxPrefillGrid) * kSelectTileRows *
                                       kSelectKept * static_cast<int64_t>(sizeof(SelectCandidate));
}

inline SelectLists select_lists(const SelectBlocksParams& p) {
    char* workspace = static_cast<char*>(p.workspace);
    return {.spans = reinterpret_cast<SelectSpan*>(workspace),
            .candidates = reinterpret_cast<SelectCandidate*>(workspace + select_spans_bytes(p)),
            .max_stretches = static_cast<int>(select_max_tiles(p) < kSelectManyTiles ? kSelectManyStretches
                                                                                     : kSelectFewStretches)};
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
    const bool decode_fits = p.num_seqs <= kSelectMaxSeqs && p.num_index_heads <= kSelectDecodeColumns &&
                             select_score_bytes(p) <= kSelectMaxScoreBytes;
    if (decode_fits && p.max_seqlen_q * p.num_index_heads <= kSelectDecodeColumns)
        return SelectKernel::kSm90Decode;
    if (kSelectTileRows % p.num_index_heads == 0 && p.num_seqs <= kSelectMaxPrefillSeqs &&
        select_max_tiles(p) <= kSelectMaxTiles) {
        if (p.max_blocks_per_seq >= kSelectListBlocks &&
            p.topk - p.init_blocks - p.local_blocks <= kSelectKept)
            return SelectKernel::kSm90PrefillLists;
        if (select_score_bytes(p) <= kSelectMaxScoreBytes) return SelectKernel::kSm90Prefill;
    }
    // Prompts too, if need be: K is read again for every few tokens.
    return decode_fits ? SelectKernel::kSm90Decode : SelectKernel::kSimple;
}

/// Pages of a decode, in the order in which they are listed, that the L2 should keep for the next call; those
/// behind them leave it first, or a stream of more than the L2 holds would leave nothing behind.
inline int64_t select_kept_units(const SelectBlocksParams& p) {
    const int64_t page_bytes = p.block_size * p.index_dim * (p.cache_dtype == DType::kE4M3 ? 1 : 2);
    const int64_t pages = p.num_seqs * p.max_blocks_per_seq;
    const int64_t bytes = pages * page_bytes;
    if (bytes <= kSelectResidentBytes) return int64_t{1} << 30;  // all
    // Measured: 32 MiB are best for 64 MiB, 16 MiB for 128 MiB and more.
    return (bytes <= 2 * kSelectResidentBytes ? int64_t{32} << 20 : int64_t{16} << 20) / page_bytes;
}

inline int64_t select_workspace_bytes(const SelectBlocksParams& p) {
    switch (choose_select(p)) {
        case SelectKernel::kSm90Decode:
        case SelectKernel::kSm90Prefill: return select_score_bytes(p);
        case SelectKernel::kSm90PrefillLists: return select_lists_bytes(p);
        case SelectKernel::kSimple: break;
    }
    return 0;
}

}  // namespace mmx::cuda
