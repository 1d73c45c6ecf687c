#pragma once

#include <algorithm>

#include "cpp/core/math.h"
#include "cpp/core/params/attention.h"
#include "cuda/kernels/attention/tile_plan.h"

/// Workspace of the sparse prefill. Tokens whose neighbours chose much the same blocks form row tiles that
/// read the union of their choices. The others are worked on KV-major: queries are cut into slabs that are
/// processed one after the other. A bucket is a (slab, KV head, sequence, block); its list names the queries
/// that chose the block, padded to row tiles of 4 queries (4 x 16 heads = 64 rows). An item is a run of row
/// tiles of one bucket.
///
/// Under fixed_split there are no unions, which round otherwise: everything is worked on KV-major, where the
/// bits of a (query, block) do not depend on its row tile. Choices that would hardly meet, of decodes, are
/// then not sorted into buckets: each is an item of its own, and nothing is listed.
namespace mmx::cuda {

inline constexpr int64_t kTileQueries = 4;
inline constexpr int64_t kRunTiles = 16;            // row tiles that share one load of K and V
inline constexpr int64_t kSlabTokens = 4096;        // bounds the partial results: 3 KB for each choice
inline constexpr int64_t kPartTokens = 256;         // whose choices a thread block counts
inline constexpr int64_t kMaxSlabBuckets = 131072;  // a thread block scans those of a slab and KV head
inline constexpr int64_t kPartialBytes = 16 * 128 * 12 / 8;  // 12 bits a value
inline constexpr int64_t kPrefillMinTokens = 256;
// Up to this many pages a tile of 8 tokens is faster than KV-major work on their 8 x 16 choices (measured).
inline constexpr int64_t kMaxUnionPages = 32;
static_assert(kMaxUnionPages <= kMaxTilePages && kMaxUnionPages <= 32);  // a lane each reads them

/// What a work item says; 16 bytes.
struct PrefillItem {
    int32_t page;
    int32_t first_tile;           // of the slab's list
    int32_t token_at_zero;        // key c of the page is visible to token i iff c <= i - token_at_zero
    uint16_t num_tiles_and_head;  // num_tiles | head << 8
    uint16_t num_keys;            // slots of the page that the sequence holds
};
static_assert(sizeof(PrefillItem) == 16);

struct PrefillPlan {
    bool unions, buckets;
    int64_t num_slabs, slab_tokens, slab_buckets, slab_entries, slab_items;
    int64_t num_parts;  // of a slab, that count their choices apart
    // Byte offsets in the workspace; what lies before `counts` begins as zeros.
    int64_t counters, next_item, next_row, num_items, num_tiles, counts, starts, ranks, lists, items,
        max_sums, partials;
    int64_t union_sizes;  // [groups of kListedTokens tokens, KV heads] int32: pages of their row tile, or 0
    int64_t union_order;  // of those with a row tile
    int64_t union_tiles, union_pages, total;
};

/// Whether queries that chose the same block are many enough to share its load.
inline bool choices_meet(const SparseAttentionParams& p) {
    const PagedAttentionParams& b = p.base;
    // A bucket of the longest chunk should fill row tiles: with fewer choices each, K and V are re-read about
    // as often as per query.
    return b.num_tokens >= kPrefillMinTokens &&
           b.max_seqlen_q * p.topk >= kTileQueries * b.max_blocks_per_seq &&
           b.num_kv_heads * b.num_seqs * b.max_blocks_per_seq <= kMaxSlabBuckets;
}

inline PrefillPlan make_prefill_plan(const SparseAttentionParams& p) {
    const PagedAttentionParams& b = p.base;
    PrefillPlan plan{};
    plan.unions = !b.fixed_split;
    plan.buckets = plan.unions || choices_meet(p);
    plan.slab_tokens = std::min(b.num_tokens, kSlabTokens);
    plan.num_slabs = ceil_div(b.num_tokens, plan.slab_tokens);
    plan.slab_buckets = plan.buckets ? b.num_kv_heads * b.num_seqs * b.max_blocks_per_seq : 0;
    const int64_t chosen = plan.slab_tokens * b.num_kv_heads * p.topk;
    const int64_t listed = plan.buckets ? chosen : 0, lists = std::min(plan.slab_buckets, chosen);
    plan.slab_entries = listed + (kTileQueries - 1) * lists;
    plan.slab_items = ceil_div(plan.slab_entries, kTileQueries * kRunTiles) + lists;
    int64_t offset = 0;
    const auto take = [&offset](int64_t bytes) {
        const int64_t at = offset;
        offset = align_up(offset + bytes, 256);
        return at;
    };
    plan.num_parts = ceil_div(plan.slab_tokens, kPartTokens);
    plan.counters = take(2 * 4);  // row tiles listed, row tiles drawn
    plan.next_item = take(plan.num_slabs * 4);
    plan.next_row = take(plan.num_slabs * 4);
    plan.num_items = take(plan.num_slabs * 4);
    plan.num_tiles = take(plan.num_slabs * 4);
    plan.counts = take(plan.num_slabs * plan.num_parts * plan.slab_buckets * 4);
    plan.starts = take(plan.num_slabs * plan.num_parts * plan.slab_buckets * 4);
    plan.ranks = take(plan.buckets ? b.num_tokens * b.num_kv_heads * p.topk * 4 : 0);
    plan.lists = take(plan.num_slabs * plan.slab_entries * 4);
    plan.items = take(plan.num_slabs * plan.slab_items * static_cast<int64_t>(sizeof(PrefillItem)));
    plan.max_sums = take(chosen * 16 * 8);  // two floats for each query head
    plan.partials = take(chosen * kPartialBytes);
    const int64_t num_groups = plan.unions ? ceil_div(b.num_tokens, kListedTokens) * b.num_kv_heads : 0;
    plan.union_sizes = take(num_groups * 4);
    plan.union_order = take(num_groups * 4);
    plan.union_tiles = take(num_groups * static_cast<int64_t>(sizeof(RowTile)));
    plan.union_pages = take(num_groups * kMaxTilePages * static_cast<int64_t>(sizeof(TilePage)));
    plan.total = offset;
    return plan;
}

}  // namespace mmx::cuda
