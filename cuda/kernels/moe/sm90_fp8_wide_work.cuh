#pragma once

#include "cuda/common/reduce.cuh"
#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/sm90_fp8_tile.cuh"

/// Which thread block multiplies what in the kernels with tiles of up to 128 rows: items drawn as blocks come
/// to their ends, or dealt out beforehand. Either way experts ascend in each block.
namespace mmx::cuda::sm90 {

inline constexpr int kFp8WideRows = Fp8WideTiles::kRows;
static_assert(kFp8WideRows == 2 * kFp8Half);

/// One output tile. No rows: there is no more.
struct Fp8WideUnit {
    int expert, weight_tile, first_row, num_rows;  // rows in plan order
};

/// Items in the order of the list, row tiles of the same weights in turn. Blocks that draw one after the
/// other begin at the same time, so that such tiles find each other's weights in the L2; dealt out, they
/// drift apart.
struct Fp8DrawnItems {
    using List = MoeWorkList<kFp8WideRows, 1, kFp8Half>;

    const List& list;
    int32_t* ticket;
    int item = static_cast<int>(blockIdx.x);

    __device__ __forceinline__ void draw() { item = static_cast<int>(gridDim.x) + atomicAdd(ticket, 1); }
    __device__ __forceinline__ Fp8WideUnit next() const {
        if (item >= list.num_items()) return {};
        const MoeUnit unit = list.unit(item, 0);
        return {unit.expert, unit.weight_tile, unit.first_row, unit.num_rows};
    }
};

/// Tiles with more than 64 rows (full) and with fewer (half), numbered separately: numbered together, every
/// third block would get all half tiles of experts with three row tiles, as the number of blocks and those of
/// an expert's tiles have factors in common.
struct Fp8WideList : ExpertSums {
    static constexpr int kHalfBits = 10;  // sums of row tiles: full << kHalfBits | half
    static_assert(kMoeMaxExperts < 1 << kHalfBits);

    __device__ __forceinline__ static int tiles_of(int num_rows) {
        const Fp8WideTiles tiles = split_wide_rows(num_rows);
        return tiles.full << kHalfBits | tiles.half;
    }
    __device__ __forceinline__ int tiles_before(int expert, bool is_half) const {
        const int tiles = before[expert];
        return is_half ? tiles % (1 << kHalfBits) : tiles >> kHalfBits;
    }
    __device__ __forceinline__ int num_items(bool is_half) const {
        return tiles_before(num_experts, is_half) * num_weight_tiles;
    }

    __device__ __forceinline__ void fill(const int32_t* offsets, int experts, int weight_tiles) {
        ExpertSums::fill(offsets, experts, weight_tiles, tiles_of);
    }
    __device__ __forceinline__ void fill_one(int num_rows, int weight_tiles) {
        ExpertSums::fill_one(num_rows, weight_tiles, tiles_of);
    }

    __device__ __forceinline__ int expert_of(int item, bool is_half) const {
        const int tile = item / num_weight_tiles;
        int low = 0, high = num_experts;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (tiles_before(middle, is_half) <= tile ? low : high) = middle;
        }
        return low;
    }

    __device__ __forceinline__ Fp8WideUnit unit(int item, int expert, bool is_half) const {
        const int begin = first_row[expert], end = first_row[expert + 1];
        const int index = item - tiles_before(expert, is_half) * num_weight_tiles;
        const int full = split_wide_rows(end - begin).full;
        const int tiles = is_half ? 1 : full;  // that share weights
        const int first = begin + (is_half ? full : index % tiles) * kFp8WideRows;
        return {expert, index / tiles, first, min(kFp8WideRows, end - first)};
    }
};

/// Of the full and of the half tiles every gridDim.x-th each; the half ones begin with the block behind the
/// one that has the last full tile.
struct Fp8DealtItems {
    using List = Fp8WideList;

    const List& list;
    int full, half;                // next items
    int full_expert, half_expert;  // theirs

    __device__ __forceinline__ explicit Fp8DealtItems(const List& list) : list(list) {
        const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
        full = block;
        half = block - list.num_items(false) % blocks;
        if (half < 0) half += blocks;
        full_expert = list.expert_of(full, false);
        half_expert = list.expert_of(half, true);
    }
    __device__ __forceinline__ void draw() {}
    __device__ __forceinline__ Fp8WideUnit next() {
        const bool has_full = full < list.num_items(false), has_half = half < list.num_items(true);
        if (!has_full && !has_half) return {};
        const bool is_half = has_half && (!has_full || half_expert < full_expert);
        const Fp8WideUnit unit =
            list.unit(is_half ? half : full, is_half ? half_expert : full_expert, is_half);
        const int following = (is_half ? half : full) + static_cast<int>(gridDim.x);
        const int expert = list.expert_of(following, is_half);
        if (is_half) {
            half = following;
            half_expert = expert;
        } else {
            full = following;
            full_expert = expert;
        }
        return unit;
    }
};

}  // namespace mmx::cuda::sm90
