#pragma once

#include <algorithm>

#include "cpp/core/math.h"
#include "cpp/core/params/attention.h"

/// Work of the dense prefill. A row tile holds neighbouring tokens of one sequence with all query heads of a
/// KV head; a kernel lists the tiles, longest context first, and thread blocks draw (tile, KV head) units.
namespace mmx::cuda {

inline constexpr int64_t kDenseTileRows = 128;
inline constexpr int64_t kDenseMinQueryLen = 16;  // fewer query tokens of a sequence leave tiles mostly empty
inline constexpr int64_t kDenseMaxGrid = 132;     // thread blocks
inline constexpr int kPartPages = 8;              // of a part of a context, under fixed_split
inline constexpr int64_t kMaxPartBytes = int64_t{1} << 30;       // of parts that a second kernel joins
inline constexpr int64_t kDenseSharedBytes = int64_t{32} << 20;  // K and V that stay in the L2

/// What a list says of a row tile; 32 bytes.
struct RowTile {
    int32_t first_token;
    int32_t first_position;  // of the first token in its sequence
    int32_t seq;
    int32_t head;  // KV head; a dense tile is listed once for all heads
    int32_t num_tokens;
    int32_t num_pages;
    int32_t num_keys;  // slots of its last page that the sequence holds
    int32_t first_block;
};
static_assert(sizeof(RowTile) == 32);

/// A page that tokens of a listed tile attend to: block << kTilePageShift | bit i: token i does.
struct TilePage {
    int32_t page;
    int32_t block_and_tokens;
};
inline constexpr int64_t kListedTokens = 8;  // with 16 query heads per KV head
inline constexpr int kTilePageShift = 8;
inline constexpr int64_t kMaxTilePages = 64;

struct DensePlan {
    /// Under fixed_split a context is cut into parts, whose sums are joined: few tokens' by a second kernel,
    /// so that the parts fill the chip, those of prompts one after the other. The bits are the same.
    enum Parts { kNone, kJoined, kInTurn };
    Parts parts;
    int64_t max_parts;
    int64_t tile_tokens;
    int64_t max_tiles;
    int64_t shared_heads;  // KV heads that are worked on at the same time: what the L2 can hold
    // Byte offsets in the workspace.
    int64_t num_tiles, next_unit, tiles, part_sums, part_stats, totals, total;
};

inline DensePlan make_dense_plan(const PagedAttentionParams& p) {
    DensePlan plan{};
    const int64_t group = p.num_heads / p.num_kv_heads;
    plan.max_parts = std::max<int64_t>(1, ceil_div(p.max_blocks_per_seq, kPartPages));
    const int64_t part_rows = p.num_tokens * p.num_heads * plan.max_parts;
    const bool joined =
        p.fixed_split && p.max_seqlen_q < kDenseMinQueryLen && part_rows * p.head_dim * 4 <= kMaxPartBytes;
    if (p.fixed_split) plan.parts = joined ? DensePlan::kJoined : DensePlan::kInTurn;
    // Half tiles keep half of the warps where full ones would be mostly empty.
    const bool few = joined && p.max_seqlen_q * group <= kDenseTileRows / 2;
    plan.tile_tokens = (few ? kDenseTileRows / 2 : kDenseTileRows) / group;
    // Each sequence may leave one tile partly empty.
    plan.max_tiles = p.num_tokens / plan.tile_tokens + std::min(p.num_seqs, p.num_tokens);
    if (joined) plan.max_tiles *= plan.max_parts;
    const int64_t head_bytes = std::max<int64_t>(1, p.max_blocks_per_seq) * p.block_size * p.head_dim * 4;
    plan.shared_heads = p.num_kv_heads;
    while (p.num_kv_heads % plan.shared_heads != 0 ||
           (plan.shared_heads > 1 && plan.shared_heads * head_bytes > kDenseSharedBytes))
        --plan.shared_heads;
    plan.num_tiles = 0;
    plan.next_unit = 4;
    plan.tiles = 256;
    plan.part_sums = align_up(plan.tiles + plan.max_tiles * static_cast<int64_t>(sizeof(RowTile)), 256);
    plan.part_stats = plan.part_sums + (joined ? part_rows * p.head_dim * 4 : 0);
    plan.totals = align_up(plan.part_stats + (joined ? part_rows * 8 : 0), 256);
    plan.total = plan.totals +
                 (plan.parts == DensePlan::kInTurn ? kDenseMaxGrid * kDenseTileRows * p.head_dim * 4 : 0);
    return plan;
}

}  // namespace mmx::cuda
