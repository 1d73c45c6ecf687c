#pragma once

#include <algorithm>
#include <cstdint>

#include "cpp/core/math.h"
#include "cpp/core/params/gemm.h"

/// Which kernel serves a projection and how it cuts its work: pure functions of sizes, tested without a
/// device. Kernels differ in rounding, so which one runs never depends on the number of rows.
namespace mmx::cuda {

/// The streaming kernel: every thread block takes the same number of neighbouring weight rows over all of k,
/// so that the multiprocessors finish together.
struct LinearPlan {
    static constexpr int64_t kMaxTileRows = 128, kMaxStages = 32;

    int64_t num_tiles;     // tile t has weight rows n t / num_tiles to n (t + 1) / num_tiles
    int64_t tile_rows;     // of the highest one
    int64_t columns;       // rows of x at a time: 8, 16, 32 or 64
    int64_t weight_bytes;  // of a stage, before those of x; a multiple of 1024
    int64_t stages;        // of 64 elements of k

    int64_t stage_bytes() const { return weight_bytes + columns * 128; }
};

inline bool sm90_linear_fits(const LinearParams& p) {
    return p.dtype == DType::kBF16 && p.k > 0 && p.k % 64 == 0 && p.x_stride % 8 == 0 &&
           p.x_stride * 2 < int64_t{1} << 40;
}

inline LinearPlan make_linear_plan(int64_t m, int64_t n, int64_t num_multiprocessors) {
    constexpr int64_t kRingBytes = 140 * 1024, kFewRows = 8;
    LinearPlan plan{};
    const int64_t passes = ceil_div(n, num_multiprocessors * LinearPlan::kMaxTileRows);
    plan.num_tiles = std::min(passes * num_multiprocessors, ceil_div(n, kFewRows));
    plan.tile_rows = ceil_div(n, plan.num_tiles);
    plan.columns = 8;
    while (plan.columns < 64 && plan.columns < m) plan.columns *= 2;
    plan.weight_bytes = align_up(plan.tile_rows * 128, 1024);
    plan.stages = std::min(LinearPlan::kMaxStages, kRingBytes / plan.stage_bytes());
    return plan;
}

}  // namespace mmx::cuda
