#pragma once

#include <algorithm>
#include <cstdint>

#include "cpp/core/params/fp8.h"
#include "cuda/kernels/moe/choose.h"

/// Which kernels serve products of e4m3 rows and weights: pure functions of sizes, tested without a device.
/// Kernels differ in rounding, so which one runs never depends on the number of rows; tiles do not change a
/// result.
namespace mmx::cuda {

/// Weight rows x rows of one tile of the Hopper kernels.
enum class Fp8Tile {
    kStream,  // dense, at most 8 rows: equal shares of the weights for all multiprocessors
    kRows,    // dense, at most 64: the same
    k64x64,   // dense, more of them
    kFew,     // experts with a few rows: at most kFp8FewHeight of them
    k256x32,  // experts, bound by reading the weights
    kWide     // dense or of experts, bound by the tensor cores: rows are the first operand
};

inline constexpr int kFp8FewHeight = 8;    // rows of a tile
inline constexpr int kFp8FewMaxRows = 64;  // of all experts
inline constexpr int kFp8FewMaxStages = 8;
inline constexpr int64_t kFp8FewMaxK = 8192;      // all of k lies in shared memory
inline constexpr int64_t kFp8StreamMaxK = 65536;  // all scales do
inline constexpr int64_t kFp8RowsMaxK = 8192;     // as well

inline Fp8Tile choose_fp8_tile(int64_t num_rows, int64_t num_experts, int64_t k) {
    if (num_rows <= kFp8FewMaxRows && k <= kFp8FewMaxK) return Fp8Tile::kFew;
    return num_rows <= 24 * num_experts ? Fp8Tile::k256x32 : Fp8Tile::kWide;
}

/// Row tiles of an expert in the wide kernels: full ones of 128 rows, the last of which has more than 64, and
/// a half one if no more than 64 rows are left.
struct Fp8WideTiles {
    static constexpr int kRows = 128;
    int full, half;
};

constexpr Fp8WideTiles split_wide_rows(int rows) {
    const int full = (rows + Fp8WideTiles::kRows / 2 - 1) / Fp8WideTiles::kRows;
    return {full, rows > full * Fp8WideTiles::kRows};
}

/// The streaming kernel of few dense rows: every thread block takes an equal number of neighbouring weight
/// rows over all of k.
struct Fp8StreamPlan {
    static constexpr int64_t kMaxRows = 8, kTileRows = 64;
    static constexpr int64_t kSteps = 4;   // of 128 of k per stage
    static constexpr int64_t kStages = 4;  // more keep the next product's from being asked for

    int64_t num_tiles;  // tile t has weight rows n t / num_tiles to n (t + 1) / num_tiles
    int64_t box_rows;   // of the highest one, a multiple of 8

    constexpr int64_t stage_bytes() const { return (box_rows + kMaxRows) * kFp8Group * kSteps; }
    constexpr int64_t ring_bytes() const { return kStages * stage_bytes(); }
    /// With the scales of `num_steps`, what products read behind the last tile, and room to align.
    constexpr int64_t smem_bytes(int64_t num_steps) const {
        return ring_bytes() + std::max(num_steps * (kMaxRows + 2) * 4, kTileRows * kFp8Group) + 1024;
    }
};

inline Fp8StreamPlan make_fp8_stream_plan(int64_t n, int64_t num_multiprocessors) {
    Fp8StreamPlan plan{};
    const int64_t passes = ceil_div(n, num_multiprocessors * Fp8StreamPlan::kTileRows);
    plan.num_tiles = std::min(passes * num_multiprocessors, ceil_div(n, int64_t{8}));
    plan.box_rows = align_up(ceil_div(n, plan.num_tiles), int64_t{8});
    return plan;
}

/// The same of up to 64 rows, which come through the ring beside the weights. Tiles are of eights of weight
/// rows.
struct Fp8RowsPlan {
    static constexpr int64_t kMaxRows = 64, kMaxTileRows = 64, kMaxStages = 12;

    int64_t num_tiles, tile_rows;  // weight rows
    int64_t x_rows;                // rows of x, rounded up to a multiple of 8
    int64_t steps, stages;         // of 128 of k per stage
    bool takes_turns;              // warpgroups that do hand on sums, of fp32, through shared memory

    constexpr int64_t stage_bytes() const { return (tile_rows + x_rows) * kFp8Group * steps; }
    /// With such sums and the scales of `num_steps`, which lie where products read behind the last row of x,
    /// and room to align.
    constexpr int64_t smem_bytes(int64_t num_steps) const {
        const int64_t sums = takes_turns ? kMaxRows * tile_rows * 4 : 0;
        return stages * stage_bytes() +
               std::max(sums + (num_steps | 1) * (x_rows + 2) * 4, (kMaxRows - x_rows) * kFp8Group) + 1024;
    }
};

inline Fp8RowsPlan make_fp8_rows_plan(int64_t m, int64_t n, int64_t num_multiprocessors) {
    Fp8RowsPlan plan{};
    const int64_t passes = ceil_div(n, num_multiprocessors * Fp8RowsPlan::kMaxTileRows);
    const int64_t eights = ceil_div(n / 8, passes * num_multiprocessors);
    plan.takes_turns = eights <= 4;
    plan.tile_rows = 8 * (plan.takes_turns ? eights : align_up(eights, int64_t{2}));
    plan.num_tiles = ceil_div(n, plan.tile_rows);
    plan.x_rows = align_up(m, int64_t{8});
    plan.steps = plan.takes_turns ? 4 : 2;
    constexpr int64_t kRingBytes = 140 * 1024, kLeastStages = 4;
    plan.stages = std::clamp(kRingBytes / plan.stage_bytes(), kLeastStages, Fp8RowsPlan::kMaxStages);
    return plan;
}

inline Fp8Tile choose_fp8_dense_tile(int64_t num_rows, int64_t n, int64_t k) {
    constexpr int64_t kWanted = 120;  // tiles, not to leave multiprocessors idle
    if (num_rows <= Fp8StreamPlan::kMaxRows && k <= kFp8StreamMaxK) return Fp8Tile::kStream;
    if (num_rows <= Fp8RowsPlan::kMaxRows && k <= kFp8RowsMaxK) return Fp8Tile::kRows;
    if (ceil_div(num_rows, 128) * ceil_div(n, 256) >= kWanted) return Fp8Tile::kWide;
    return num_rows <= 256 || n < 64 * kWanted ? Fp8Tile::k64x64 : Fp8Tile::kWide;
}

inline bool sm90_fp8_fits(int64_t num_experts, int64_t weight_rows, int64_t k) {
    return num_experts <= kMoeMaxExperts && weight_rows % kFp8Group == 0 && k % kFp8Group == 0;
}

/// Sizes only: the launchers check that pointers are 16-byte aligned.
inline bool sm90_fp8_fits(const Fp8MoeGateUpParams& p) {
    return sm90_fp8_fits(p.num_local_experts, p.inter, p.hidden);
}

/// Of few rows, as without the Hopper kernels, another kernel than that of the products quantises. Where
/// tensor cores are the limit the workspace holds counts and a copy of x in plan order: gathering rows
/// without the copy engine costs more than the copy.
inline int64_t fp8_gate_up_workspace_bytes(const Fp8MoeGateUpParams& p) {
    const int64_t num_rows = p.num_tokens * p.topk;
    const Fp8Tile tile = choose_fp8_tile(num_rows, p.num_local_experts, p.hidden);
    if (!sm90_fp8_fits(p) || tile == Fp8Tile::kFew)
        return num_rows * p.inter * static_cast<int64_t>(sizeof(float));
    return tile == Fp8Tile::kWide ? kMoeCountBytes + num_rows * p.hidden : 0;
}

inline bool sm90_fp8_fits(const Fp8MoeDownParams& p) {
    return sm90_fp8_fits(p.num_local_experts, p.hidden, p.inter) && p.out_dtype == DType::kBF16;
}
inline bool sm90_fp8_fits(const Fp8LinearParams& p) {
    return sm90_fp8_fits(1, p.n, p.k) && p.out_dtype == DType::kBF16 && p.out_stride % 8 == 0;
}

}  // namespace mmx::cuda
