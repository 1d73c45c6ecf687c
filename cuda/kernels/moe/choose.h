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

/// Rows of one expert in tiles of equal height: `count` tiles of at most `height` rows, a multiple of 8.
struct RowTiles {
    int count, height;
};

/// As few tiles of at most `max_height` rows (a multiple of 8) as hold `rows`, then as low as they can be.
/// Every tile has at least one row.
constexpr RowTiles split_rows(int rows, int max_height) {
    if (rows <= 0) return {0, 0};
    const int count = (rows + max_height - 1) / max_height;
    return {count, ((rows + count - 1) / count + 7) / 8 * 8};
}

/// Weight rows (of the interleaved gate and up) x rows of x of one tile, and how many thread blocks share a
/// weight tile.
enum class MoeTile {
    k64x32,           // one or a few tokens: small enough to spread over every multiprocessor
    k128x64,          // bound by reading the weights
    k256x160,         // bound by reading the weights, rows many enough to matter
    k256x160Cluster,  // bound by the tensor cores: two blocks share each weight tile
};

}  // namespace mmx::cuda
