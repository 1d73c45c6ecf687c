#pragma once

#include <algorithm>

#include "cpp/core/math.h"
#include "cpp/core/params/attention.h"

/// Workspace of the KV-major sparse prefill. Queries are cut into slabs that are processed one after the
/// other. A bucket is a (slab, KV head, sequence, block); its list names the queries that chose the block,
/// padded to row tiles of 4 queries (4 x 16 heads = 64 rows). An item is a run of row tiles of one bucket.
namespace mmx::cuda {

inline constexpr int64_t kTileQueries = 4;
inline constexpr int64_t kRunTiles = 16;           // row tiles that share one load of K and V
inline constexpr int64_t kSlabTokens = 2048;       // bounds the partial results: 64 KB per token and KV head
inline constexpr int64_t kMaxSlabBuckets = 65536;  // a single thread block scans the buckets of a slab
inline constexpr int64_t kPartialBytes = 16 * 128 * 2;
inline constexpr int64_t kPrefillMinTokens = 256;

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
    int64_t num_slabs, slab_tokens, slab_buckets, slab_entries, slab_items;
    // Byte offsets in the workspace.
    int64_t counts, starts, num_items, ranks, lists, items, lse, partials, total;
};

inline PrefillPlan make_prefill_plan(const SparseAttentionParams& p) {
    const PagedAttentionParams& b = p.base;
    PrefillPlan plan{};
    plan.slab_tokens = std::min(b.num_tokens, kSlabTokens);
    plan.num_slabs = ceil_div(b.num_tokens, plan.slab_tokens);
    plan.slab_buckets = b.num_kv_heads * b.num_seqs * b.max_blocks_per_seq;
    const int64_t chosen = plan.slab_tokens * b.num_kv_heads * p.topk;
    plan.slab_entries = chosen + (kTileQueries - 1) * std::min(plan.slab_buckets, chosen);
    plan.slab_items =
        ceil_div(plan.slab_entries, kTileQueries * kRunTiles) + std::min(plan.slab_buckets, chosen);
    int64_t offset = 0;
    const auto take = [&offset](int64_t bytes) {
        const int64_t at = offset;
        offset = align_up(offset + bytes, 256);
        return at;
    };
    plan.counts = take(plan.num_slabs * plan.slab_buckets * 4);
    plan.starts = take(plan.num_slabs * plan.slab_buckets * 4);
    plan.num_items = take(plan.num_slabs * 4);
    plan.ranks = take(b.num_tokens * b.num_kv_heads * p.topk * 4);
    plan.lists = take(plan.num_slabs * plan.slab_entries * 4);
    plan.items = take(plan.num_slabs * plan.slab_items * static_cast<int64_t>(sizeof(PrefillItem)));
    plan.lse = take(chosen * 16 * 4);
    plan.partials = take(chosen * kPartialBytes);
    plan.total = offset;
    return plan;
}

}  // namespace mmx::cuda
