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
    k64x16,         // dense, a few rows: small enough to spread over many multiprocessors
    k32x64,         // dense, more of them
    k256x32,        // bound by reading the weights
    k256x128Pairs,  // rows weigh on the L2 or on the tensor cores: two thread blocks share each weight tile
};

inline Fp8Tile choose_fp8_tile(int64_t num_rows, int64_t num_experts) {
    if (num_experts == 1 && num_rows <= 256) return num_rows <= 64 ? Fp8Tile::k64x16 : Fp8Tile::k32x64;
    return num_rows <= 24 * num_experts ? Fp8Tile::k256x32 : Fp8Tile::k256x128Pairs;
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
