#pragma once

#include <cstddef>

#include "cuda/common/ptx/global.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/ring.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/common/widen.cuh"
#include "cuda/kernels/attention/sm90_tiles.h"

/// What the thread blocks of the tile kernels share, and the warps that feed them.
namespace mmx::cuda::sm90 {

inline constexpr int kPage = 128, kDim = 128, kRows = kDenseTileRows;
inline constexpr int kStages = 2, kConsumers = 2, kThreads = (1 + kConsumers) * 128;
inline constexpr int kHalfPageBytes = kPage * 128;  // 64 of the 128 dimensions
inline constexpr int kHalfQBytes = kRows * 128;
inline constexpr int kTileWords = sizeof(RowTile) / 4;
inline constexpr int kTileSlots = 4;  // a tile is known until it is stored, beside the first step of the next
// Of e4m3 pages: slots of codes, warps that widen them. Four slots: fewer are emptied faster than they fill.
inline constexpr int kCodeSlots = 4, kWideners = 3;

/// Pages of a tile: all of its context, those of a list, or its context in parts that are softened each for
/// itself and joined from the last to the first, so that a row's bits do not depend on who does its parts.
enum class TileMode { kWhole, kListed, kParts };

/// Where the list of row tiles and the lists of their pages lie.
struct TileJob {
    PagedAttentionParams p;
    int group, group_inverse;  // query heads per KV head, and 2^16 / group rounded up
    float scale_log2;
    int tile_tokens, shared_heads;
    int num_teams;  // warpgroups that share the rows of a tile: 2, or with parts 1 for tiles of 64 rows
    int *num_tiles, *next_unit;
    RowTile* tiles;
    const int* order;       // listed: tiles in the order in which they are begun
    const TilePage* pages;  // listed: [tile, kMaxTilePages], from the last page to the first
    // Parts: each a tile of its own, whose sums a second kernel joins, or one after the other.
    float* part_sums;    // [num_tokens, num_heads, max_parts, kDim], or null: one after the other
    float2* part_stats;  // [num_tokens, num_heads, max_parts]: maximum (base 2), sum of weights
    float4* totals;      // [thread block, kDim / 2 / 4, 256]: sums of the parts so far of each thread's rows
    int max_parts;
};

/// Tiles of queries: the next one is on its way while one is in use, unless codes need the room.
template <class C>
inline constexpr int kQSlots = sizeof(C) == 1 ? 1 : 2;

template <class C>
struct SharedPages {
    alignas(1024) char q[kQSlots<C>][2 * kHalfQBytes];
    alignas(1024) char k[kStages][2 * kHalfPageBytes];
    alignas(1024) char v[kStages][2 * kHalfPageBytes];
    uint64_t q_full[kQSlots<C>], q_empty[kQSlots<C>];
    uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    RowTile tile[kTileSlots];  // no pages: the end
    int chosen[kStages];       // of listed pages: TilePage::block_and_tokens
};

/// What a slot of codes holds.
enum class CodesOf : int { kKeys, kValues, kEnd };

template <class C>
struct Shared : SharedPages<C> {};

/// e4m3 pages pass through slots of codes; `k` and `v` hold f16.
template <>
struct Shared<e4m3> : SharedPages<e4m3> {
    alignas(1024) char codes[kCodeSlots][kPage * kDim];
    uint64_t codes_full[kCodeSlots], codes_empty[kCodeSlots];
    CodesOf codes_of[kCodeSlots];
    int codes_chosen[kCodeSlots];
};

struct Maps {
    CUtensorMap q;     // (dimension, head, token)
    CUtensorMap k, v;  // (dimension, slot, head, page)
};

template <class C>
__device__ __forceinline__ void load_page(char* smem, const CUtensorMap& map, uint64_t& barrier, int head,
                                          int page) {
    constexpr int kBytes = kPage * kDim * static_cast<int>(sizeof(C));
    ptx::barrier_arrive_expect(barrier, kBytes);
    for (int half = 0; half < kBytes / kHalfPageBytes; ++half)
        ptx::tma_load_4d(smem + half * kHalfPageBytes, map, barrier, half * 64, 0, head, page);
}

/// One warp draws units, (tile, KV head) or a listed tile, and loads their Q, K and V; pages from the last to
/// the first, K one page ahead of V. What it needs to know of a tile is on its way while the one before is
/// loaded.
template <class C, TileMode kMode>
__device__ __forceinline__ void produce(const TileJob& job, const Maps& maps, Shared<C>& shared) {
    constexpr bool kCodes = sizeof(C) == 1, kListed = kMode == TileMode::kListed;
    const PagedAttentionParams& p = job.p;
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    const int num_tiles = *job.num_tiles;
    const int num_units = kListed ? num_tiles : num_tiles * static_cast<int>(p.num_kv_heads);
    const auto draw = [&] { return lane_idx == 0 ? ptx::draw_number(job.next_unit) : 0; };
    Ring<kQSlots<C>> q(1);
    Ring<kTileSlots> tile_slot(0);
    Ring<kStages> k(1), v(1);
    Ring<kCodeSlots> codes(1);
    /// By one lane: K or V of a page, on their way to the products or to the warps that widen them.
    const auto load_keys = [&](int head, int page, int chosen) {
        if constexpr (kCodes) {
            ptx::barrier_wait(shared.codes_empty[codes.at], codes.parity);
            shared.codes_of[codes.at] = CodesOf::kKeys;
            shared.codes_chosen[codes.at] = chosen;
            load_page<C>(shared.codes[codes.at], maps.k, shared.codes_full[codes.at], head, page);
            codes.advance();
        } else {
            ptx::barrier_wait(shared.k_empty[k.at], k.parity);
            if constexpr (kListed) shared.chosen[k.at] = chosen;
            load_page<C>(shared.k[k.at], maps.k, shared.k_full[k.at], head, page);
            k.advance();
        }
    };
    const auto load_values = [&](int head, int page) {
        if constexpr (kCodes) {
            ptx::barrier_wait(shared.codes_empty[codes.at], codes.parity);
            shared.codes_of[codes.at] = CodesOf::kValues;
            load_page<C>(shared.codes[codes.at], maps.v, shared.codes_full[codes.at], head, page);
            codes.advance();
        } else {
            ptx::barrier_wait(shared.v_empty[v.at], v.parity);
            load_page<C>(shared.v[v.at], maps.v, shared.v_full[v.at], head, page);
            v.advance();
        }
    };
    const auto read_page = [&](int list, int seq, int num_pages, int first_block, int i) {
        i = min(i, num_pages - 1);
        if constexpr (kListed)
            return job.pages[static_cast<int64_t>(list) * kMaxTilePages + i];
        else
            return TilePage{p.block_table[seq * p.block_table_stride + first_block + num_pages - 1 - i], 0};
    };
    /// Each lane has a word of the tile, 0 at the end, and one of its first 32 pages.
    struct Tile {
        int word;
        TilePage page;
    };
    const auto word_of = [](const Tile& tile, size_t offset) {
        return __shfl_sync(kFull, tile.word, static_cast<int>(offset / 4));
    };
    int list;  // listed: of the tile that was found last, -1 at the end
    /// Two steps, so that none waits for the other.
    const auto find_tile = [&](Tile& tile, int index) {
        tile.word = 0;
        list = -1;
        if (index >= num_units) return;
        if constexpr (kListed) {
            list = job.order[index];
        } else {
            const int first_head = index / (num_tiles * job.shared_heads) * job.shared_heads;
            const int rest = index - first_head * num_tiles, i = rest / job.shared_heads;
            const int* words = reinterpret_cast<const int*>(job.tiles + i);
            if (lane_idx < kTileWords) tile.word = words[lane_idx];
            if (lane_idx == offsetof(RowTile, head) / 4) tile.word = first_head + rest - i * job.shared_heads;
        }
    };
    const auto read_tile = [&](Tile& tile) {
        if constexpr (kListed) {
            if (list < 0) return;
            const int* words = reinterpret_cast<const int*>(job.tiles + list);
            if (lane_idx < kTileWords) tile.word = words[lane_idx];
            tile.page = read_page(list, 0, kMaxTilePages, 0, lane_idx);
        } else {
            const int num_pages = word_of(tile, offsetof(RowTile, num_pages));
            const int seq = word_of(tile, offsetof(RowTile, seq));
            const int first_block = word_of(tile, offsetof(RowTile, first_block));
            if (num_pages > 0) tile.page = read_page(0, seq, num_pages, first_block, lane_idx);
        }
    };
    Tile tile{}, next{};
    int drawn = draw();
    find_tile(tile, __shfl_sync(kFull, drawn, 0));
    read_tile(tile);
    drawn = draw();
    /// Hands a tile, or the end, to the warpgroups and loads its queries.
    const auto announce = [&](const Tile& tile) {
        const int num_pages = word_of(tile, offsetof(RowTile, num_pages));
        const int head = word_of(tile, offsetof(RowTile, head));
        const int first_token = word_of(tile, offsetof(RowTile, first_token));
        if (lane_idx == 0) ptx::barrier_wait(shared.q_empty[q.at], q.parity);
        __syncwarp();
        if (lane_idx < kTileWords) reinterpret_cast<int*>(shared.tile + tile_slot.at)[lane_idx] = tile.word;
        __syncwarp();
        if (lane_idx == 0) {
            if (num_pages == 0) {
                ptx::barrier_arrive(shared.q_full[q.at]);
            } else {
                ptx::barrier_arrive_expect(shared.q_full[q.at], 2 * job.group * job.tile_tokens * 128);
                for (int half = 0; half < 2; ++half)
                    ptx::tma_load_3d(shared.q[q.at] + half * kHalfQBytes, maps.q, shared.q_full[q.at],
                                     half * 64, head * job.group, first_token);
            }
        }
        q.advance();
        tile_slot.advance();
    };
    // With a slot to spare queries are asked for before the pages of the tile before are done.
    constexpr bool kEarly = kQSlots<C> > 1;
    if constexpr (kEarly) announce(tile);
    for (;;) {
        if constexpr (!kEarly) announce(tile);
        const int num_pages = word_of(tile, offsetof(RowTile, num_pages));
        const int head = word_of(tile, offsetof(RowTile, head));
        if (num_pages == 0) {
            if constexpr (kCodes) {
                if (lane_idx == 0) {
                    ptx::barrier_wait(shared.codes_empty[codes.at], codes.parity);
                    shared.codes_of[codes.at] = CodesOf::kEnd;
                    ptx::barrier_arrive(shared.codes_full[codes.at]);
                }
            }
            return;
        }
        TilePage ahead = tile.page, after{};  // a lane each of 32 pages, and of those behind them
        int page = 0, page_before;
        for (int i = 0; i <= num_pages; ++i) {
            page_before = page;
            if (i == 0) {
                find_tile(next, __shfl_sync(kFull, drawn, 0));
                drawn = draw();
            }
            if (i == 1) read_tile(next);
            if (kEarly && i == min(num_pages, 3)) announce(next);
            if constexpr (!kListed) {
                if (i % 32 == 1 && i + 31 < num_pages)
                    after = read_page(0, word_of(tile, offsetof(RowTile, seq)), num_pages,
                                      word_of(tile, offsetof(RowTile, first_block)), i + 31 + lane_idx);
                if (i % 32 == 0 && i > 0) ahead = after;
            }
            if (i < num_pages) {
                page = __shfl_sync(kFull, ahead.page, i % 32);
                const int chosen = kListed ? __shfl_sync(kFull, ahead.block_and_tokens, i % 32) : 0;
                if (lane_idx == 0) load_keys(head, page, chosen);
            }
            if (i > 0 && lane_idx == 0) load_values(head, page_before);
        }
        tile = next;
    }
}

/// Warps that turn pages of codes into f16, in the order in which they are loaded.
template <bool kListed>
__device__ __forceinline__ void widen(Shared<e4m3>& shared, int warp) {
    const int lane_idx = static_cast<int>(threadIdx.x % 32);
    Ring<kCodeSlots> codes(0);
    Ring<kStages> k(1), v(1);
    for (;;) {
        ptx::barrier_wait(shared.codes_full[codes.at], codes.parity);
        const CodesOf what = shared.codes_of[codes.at];
        if (what == CodesOf::kEnd) return;
        const bool keys = what == CodesOf::kKeys;
        Ring<kStages>& ring = keys ? k : v;
        ptx::barrier_wait((keys ? shared.k_empty : shared.v_empty)[ring.at], ring.parity);
        widen_page<kWideners>(ptx::smem_address((keys ? shared.k : shared.v)[ring.at]),
                              ptx::smem_address(shared.codes[codes.at]), warp);
        if constexpr (kListed) {
            if (keys && warp == 0 && lane_idx == 0) shared.chosen[ring.at] = shared.codes_chosen[codes.at];
        }
        ptx::fence_async_proxy();
        __syncwarp();
        if (lane_idx == 0) {
            ptx::barrier_arrive((keys ? shared.k_full : shared.v_full)[ring.at]);
            ptx::barrier_arrive(shared.codes_empty[codes.at]);
        }
        ring.advance();
        codes.advance();
    }
}

}  // namespace mmx::cuda::sm90
