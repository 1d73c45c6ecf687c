#pragma once

#include "cuda/common/reduce.cuh"
#include "cuda/common/search.cuh"
#include "cuda/kernels/moe/choose.h"

/// The work of a grouped GEMM, listed by every thread block for itself from the offsets of the expert plan:
/// no host read, no extra launch.
namespace mmx::cuda::sm90 {

/// One output tile: rows of one expert x weight rows. kCluster blocks work on neighbouring tiles in step.
struct MoeUnit {
    int expert, weight_tile;
    int first_row, num_rows;  // in plan order
    int height;               // of the tile: num_rows rounded up, the n of the products
    bool is_weight_shared;    // by all blocks of the cluster, which differ in rows; else they differ in
                              // weight_tile
    bool is_valid;            // false: in step only
};

/// A sum over the experts before each, and where its rows begin.
struct ExpertSums {
    int before[kMoeMaxExperts + 1];
    int first_row[kMoeMaxExperts + 1];
    int of_run[kMoeMaxExperts / 32];
    int num_experts, num_weight_tiles;

    /// `of(num_rows)`: what an expert adds. By all threads of the block; the caller synchronises the block
    /// before the sums are read.
    template <class Of>
    __device__ __forceinline__ void fill(const int32_t* offsets, int experts, int weight_tiles, Of of) {
        const int tid = static_cast<int>(threadIdx.x), num_threads = static_cast<int>(blockDim.x);
        for (int e = tid; e <= experts; e += num_threads) first_row[e] = offsets[e];
        __syncthreads();
        // Runs of 32 experts, each summed by one warp.
        for (int first = tid / 32 * 32; first < experts; first += num_threads) {
            const int e = first + tid % 32;
            const int mine = e < experts ? of(first_row[e + 1] - first_row[e]) : 0;
            const int sum = warp_prefix_sum(mine);
            if (e < experts) before[e] = sum - mine;
            if (tid % 32 == 31) of_run[first / 32] = sum;
        }
        __syncthreads();
        for (int e = tid; e <= experts; e += num_threads) {
            int base = 0;
            for (int run = 0; run < (e < experts ? e / 32 : (experts + 31) / 32); ++run) base += of_run[run];
            before[e] = base + (e < experts ? before[e] : 0);
        }
        if (tid == 0) {
            num_experts = experts;
            num_weight_tiles = weight_tiles;
        }
    }

    /// The same for one expert that has all rows. By one thread.
    template <class Of>
    __device__ __forceinline__ void fill_one(int num_rows, int weight_tiles, Of of) {
        first_row[0] = before[0] = 0;
        first_row[1] = num_rows;
        before[1] = of(num_rows);
        num_experts = 1;
        num_weight_tiles = weight_tiles;
    }
};

/// Items are numbered expert by expert, row tiles of the same weights next to each other, so that weights are
/// read from memory once and rows stay in the L2.
template <int kMaxHeight, int kCluster, int kHeightStep = 8>
struct MoeWorkList : ExpertSums {
    __device__ __forceinline__ int num_items() const { return before[num_experts]; }

    __device__ __forceinline__ void fill(const int32_t* offsets, int experts, int weight_tiles) {
        ExpertSums::fill(offsets, experts, weight_tiles,
                         [&](int num_rows) { return items_of(num_rows, weight_tiles); });
    }
    __device__ __forceinline__ void fill_one(int num_rows, int weight_tiles) {
        ExpertSums::fill_one(num_rows, weight_tiles, [&](int rows) { return items_of(rows, weight_tiles); });
    }

    /// Row tiles in full clusters share their weights; the others of a cluster's width split the weight
    /// tiles.
    __device__ __forceinline__ static int items_of(int num_rows, int weight_tiles) {
        const int tiles = split_rows(num_rows, kMaxHeight, kHeightStep).count;
        return tiles / kCluster * weight_tiles +
               tiles % kCluster * ((weight_tiles + kCluster - 1) / kCluster);
    }

    /// The tile of block `rank` of the cluster in item number `item`.
    __device__ __forceinline__ MoeUnit unit(int item, int rank) const {
        const int expert = place_in(before, num_experts, item);
        const int begin = first_row[expert], end = first_row[expert + 1];
        const RowTiles tiles = split_rows(end - begin, kMaxHeight, kHeightStep);
        int index = item - before[expert], row_tile, weight_tile;
        const int full = tiles.count / kCluster;
        const bool is_shared = kCluster > 1 && index < full * num_weight_tiles;
        if (kCluster == 1 || is_shared) {
            weight_tile = index / full;
            row_tile = index % full * kCluster + rank;
        } else {
            index -= full * num_weight_tiles;
            weight_tile = index / (tiles.count % kCluster) * kCluster + rank;
            row_tile = full * kCluster + index % (tiles.count % kCluster);
        }
        const int first = begin + row_tile * tiles.height, num_rows = min(tiles.height, end - first);
        return {expert,    min(weight_tile, num_weight_tiles - 1), first, num_rows, (num_rows + 7) / 8 * 8,
                is_shared, weight_tile < num_weight_tiles};
    }
};

/// The same for at most kMaxRows rows in all, by one warp: a row tile is all that an expert has.
template <int kMaxRows>
struct MoeFewList {
    struct Unit {
        int expert, first_row, num_rows;
    };
    Unit units[kMaxRows];
    int num_units, num_weight_tiles;

    __device__ __forceinline__ int num_items() const { return num_units * num_weight_tiles; }

    __device__ __forceinline__ void fill(const int32_t* offsets, int experts, int weight_tiles) {
        constexpr int kMost = static_cast<int>(kMoeMaxExperts) / 32;
        const int lane_idx = static_cast<int>(threadIdx.x);
        if (lane_idx >= 32) return;
        int begin[kMost], end[kMost], listed = 0;
        // All loads before the first that is looked at.
#pragma unroll
        for (int i = 0; i < kMost; ++i) {
            const int e = i * 32 + lane_idx;
            begin[i] = e < experts ? offsets[e] : 0;
            end[i] = e < experts ? offsets[e + 1] : 0;
        }
#pragma unroll
        for (int i = 0; i < kMost; ++i) {
            const unsigned has_rows = __ballot_sync(kFull, end[i] > begin[i]);
            const int at = listed + __popc(has_rows & ((1u << lane_idx) - 1));
            if (end[i] > begin[i]) units[at] = {i * 32 + lane_idx, begin[i], end[i] - begin[i]};
            listed += __popc(has_rows);
        }
        if (lane_idx == 0) {
            num_units = listed;
            num_weight_tiles = weight_tiles;
        }
    }

    __device__ __forceinline__ MoeUnit unit(int item, int) const {
        const Unit& of = units[item / num_weight_tiles];
        return {of.expert,   item % num_weight_tiles,   of.first_row,
                of.num_rows, (of.num_rows + 7) / 8 * 8, false,
                true};
    }
};

}  // namespace mmx::cuda::sm90
