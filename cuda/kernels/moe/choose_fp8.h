#pragma once

#include <cstdint>

#include "cpp/core/params/fp8.h"
#include "cuda/kernels/moe/choose.h"

/// Which kernels serve products of e4m3 rows and weights: pure functions of sizes, tested without a device.
/// Kernels differ in rounding, so which one runs never depends on the number of rows; tiles do not change a
/// result.
namespace mmx::cuda {

/// Weight rows x rows of one tile of the Hopper kernels.
enum class Fp8Tile {
    k64x16,        // dense, a few rows
    k64x64,        // dense, more of them
    k256x32,       // bound by reading the weights
    kRows128x256,  // bound by the tensor cores: rows are the first operand
    k256x128Pairs  // likewise, of experts: rows in steps of 8; two thread blocks share each weight tile
};

/// `n`: weight rows of an expert, gate and up counted.
inline Fp8Tile choose_fp8_tile(int64_t num_rows, int64_t num_experts, int64_t n) {
    constexpr int64_t kWanted = 120;  // tiles, not to leave multiprocessors idle
    if (num_experts > 1) return num_rows <= 24 * num_experts ? Fp8Tile::k256x32 : Fp8Tile::k256x128Pairs;
    if (ceil_div(num_rows, 128) * ceil_div(n, 256) >= kWanted) return Fp8Tile::kRows128x256;
    const bool few_weights = n < 64 * kWanted;
    if (num_rows <= (few_weights ? 16 : 8)) return Fp8Tile::k64x16;
    return num_rows <= 256 || few_weights ? Fp8Tile::k64x64 : Fp8Tile::kRows128x256;
}

inline bool sm90_fp8_fits(int64_t num_experts, int64_t weight_rows, int64_t k) {
    return num_experts <= kMoeMaxExperts && weight_rows % kFp8Group == 0 && k % kFp8Group == 0;
}

/// Sizes only: the launchers check that pointers are 16-byte aligned.
inline bool sm90_fp8_fits(const Fp8MoeGateUpParams& p) {
    return sm90_fp8_fits(p.num_local_experts, p.inter, p.hidden);
}
inline bool sm90_fp8_fits(const Fp8MoeDownParams& p) {
    return sm90_fp8_fits(p.num_local_experts, p.hidden, p.inter) && p.out_dtype == DType::kBF16;
}
inline bool sm90_fp8_fits(const Fp8LinearParams& p) {
    return sm90_fp8_fits(1, p.n, p.k) && p.out_dtype == DType::kBF16 && p.out_stride % 8 == 0;
}

}  // namespace mmx::cuda
