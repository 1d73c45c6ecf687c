#pragma once

#include <algorithm>
#include <cstdint>

#include "cpp/core/math.h"
#include "cpp/core/params/moe.h"

/// Which kernels serve the grouped GEMMs and how they cut their work: pure functions of sizes, tested without
/// a device. Kernels differ in rounding, so which one runs never depends on the number of tokens; tiles do
/// not change a result.
namespace mmx::cuda {

inline constexpr int64_t kMoeMaxExperts = 512;  // of the Hopper kernels' work list

/// Rows of one expert in tiles of equal height: `count` tiles of at most `height` rows.
struct RowTiles {
    int count, height;
};

/// As few tiles of at most `max_height` rows (a multiple of `step`) as hold `rows`, then as low as they can
/// be. Every tile has at least one row.
constexpr RowTiles split_rows(int rows, int max_height, int step = 8) {
    if (rows <= 0) return {0, 0};
    const int count = (rows + max_height - 1) / max_height;
    return {count, ((rows + count - 1) / count + step - 1) / step * step};
}

/// Tiles of the bf16 grouped GEMMs: weight rows (gate and up counted) x rows of x.
enum class MoeBf16Tile {
    k64x8,            // a token or two: every multiprocessor reads at once, and as deep as its memory allows
    k64x32,           // bound by reading the weights
    k256x96,          // bound by reading the weights, but rows are many enough to weigh on the L2
    k256x160Cluster,  // bound by both memory and tensor cores: two thread blocks share each weight tile
    k128x304Cluster,  // bound by the tensor cores: all rows of most experts in one tile
};

inline constexpr int kMoeWideHeight = 304;
inline constexpr int64_t kMoeTicketBytes = 256;  // of workspace: which tile is next
inline constexpr int64_t kMoeCountBytes = kMoeTicketBytes + kMoeMaxExperts * 4;  // before the copy of x

inline constexpr int64_t kMoeFewRows = 8;  // that the smallest tile has room for, whatever their experts

inline MoeBf16Tile choose_bf16_tile(int64_t num_rows, int64_t num_experts) {
    if (num_rows <= kMoeFewRows) return MoeBf16Tile::k64x8;
    if (num_rows <= 4 * num_experts) return MoeBf16Tile::k64x32;
    if (num_rows <= 96 * num_experts) return MoeBf16Tile::k256x96;
    return num_rows <= 144 * num_experts ? MoeBf16Tile::k256x160Cluster : MoeBf16Tile::k128x304Cluster;
}

inline bool sm90_bf16_fits(DType dtype, DType weight_dtype, int64_t num_experts, int64_t k, int64_t x_rows,
                           int64_t x_stride) {
    return dtype == DType::kBF16 && weight_dtype == DType::kBF16 && num_experts <= kMoeMaxExperts &&
           k % 64 == 0 && x_stride % 8 == 0 && x_rows * x_stride < int64_t{1} << 35;
}

/// Sizes and strides only: the launchers check that pointers are 16-byte aligned.
inline bool sm90_bf16_fits(const MoeGateUpParams& p) {
    return sm90_bf16_fits(p.dtype, p.weight_dtype, p.num_local_experts, p.hidden, p.num_tokens, p.x_stride) &&
           p.inter % 16 == 0;
}
inline bool sm90_bf16_fits(const MoeDownParams& p) {
    return sm90_bf16_fits(p.dtype, p.weight_dtype, p.num_local_experts, p.inter, p.num_rows, p.inter) &&
           p.hidden % 32 == 0;
}

/// Bytes of workspace for a copy of x in plan order: where tensor cores are the limit, gathering rows without
/// the copy engine costs more than the copy. 0: rows are gathered on the way.
inline int64_t bf16_copied_bytes(const MoeGateUpParams& p) {
    constexpr int64_t kMaxBytes = int64_t{1} << 30;
    const int64_t num_rows = p.num_tokens * p.topk, bytes = num_rows * p.hidden * 2;
    const bool wanted = choose_bf16_tile(num_rows, p.num_local_experts) >= MoeBf16Tile::k256x160Cluster;
    return sm90_bf16_fits(p) && wanted && bytes <= kMaxBytes ? kMoeCountBytes + bytes : 0;
}

inline int64_t bf16_ticket_bytes(const MoeDownParams& p) {
    const bool draws = choose_bf16_tile(p.num_rows, p.num_local_experts) == MoeBf16Tile::k128x304Cluster;
    return sm90_bf16_fits(p) && draws ? kMoeTicketBytes : 0;
}

/// The Hopper router: its sums over k are cut into kRouterSplits parts whatever the number of tokens, so that
/// a token's scores do not depend on its batch. Thread blocks take one, two or four of them and write each,
/// or half of them and write their sum.
inline constexpr int kRouterSplits = 16;
inline constexpr int64_t kRouterExperts = 128, kRouterTokens = 128;  // of one thread block
inline constexpr int64_t kRouterMaxExperts = 256;

/// Of few tokens a thread block holds all that its sums need: kRouterFewExperts x 1 / kRouterSplits of k.
inline constexpr int64_t kRouterFewExperts = 64, kRouterFewTokens = 128;
inline constexpr int kRouterFewChunks = 6;  // of 64 of k
/// Of fewer still, one thread block chooses and plans.
inline constexpr int64_t kRouterPlanTokens = 16, kRouterPlanRows = 512, kRouterPlanExperts = 512;

struct RouterPlan {
    int blocks;     // that share the sums over k: kRouterSplits, or half as many and so on down to 2
    int num_sums;   // of each token and expert in the workspace: kRouterSplits or 2
    int cluster;    // blocks that share each weight tile
    bool few;       // the kernel for few tokens runs; blocks says nothing
    int64_t sums;   // bytes in the workspace before the sums
    int64_t total;  // bytes
};

inline bool sm90_router_fits(const MoeRouterParams& p) {
    return p.dtype == DType::kBF16 && p.hidden % 64 == 0 && p.x_stride % 8 == 0 &&
           p.num_experts <= kRouterMaxExperts;
}

inline RouterPlan make_router_plan(const MoeRouterParams& p) {
    constexpr int64_t kWantedBlocks = 120;
    RouterPlan plan{kRouterSplits, kRouterSplits, 1, false, 0, 0};
    const int64_t tiles = ceil_div(p.num_tokens, kRouterTokens) * ceil_div(p.num_experts, kRouterExperts);
    while (plan.blocks > 2 && tiles * plan.blocks / 2 >= kWantedBlocks) plan.blocks /= 2;
    plan.few = p.num_tokens <= kRouterFewTokens && p.hidden <= 64 * kRouterFewChunks * kRouterSplits;
    if (plan.few || plan.blocks == 2) plan.num_sums = 2;
    if (p.num_tokens > 4 * kRouterTokens) plan.cluster = 2;
    plan.sums = plan.few ? 0 : align_up(3 * p.num_experts * p.hidden * 2, 256);
    plan.total = plan.sums + plan.num_sums * p.num_tokens * p.num_experts * 4;
    return plan;
}

/// Whether choice and plan share a thread block. Offsets are one more than experts.
inline bool router_plans(const MoeRouterParams& p, const MoePlanParams& plan) {
    return sm90_router_fits(p) && make_router_plan(p).few && p.num_tokens <= kRouterPlanTokens &&
           plan.num_tokens * plan.topk <= kRouterPlanRows && plan.num_local_experts < kRouterPlanExperts;
}

}  // namespace mmx::cuda
