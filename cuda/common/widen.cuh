#pragma once

#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/shared.cuh"
#include "cuda/common/reduce.cuh"

/// From e4m3 pages to operands of f16 tensor core products, both exact, within shared memory. All tiles lie
/// as the copy engine leaves them with the 128-byte swizzle: 16 bytes `chunk` of row r at chunk ^ r % 8.
namespace mmx::cuda {

inline constexpr int kWidePage = 128, kWideDim = 128;        // keys and dimensions of a page
inline constexpr int kWideHalfBytes = kWidePage * kWideDim;  // 64 of the dimensions in f16

/// Codes [128, 128] become two halves of 64 dimensions [128, 64] f16 at `wide`, by kWarps warps of which this
/// is number `warp`. The caller fences and tells who waits.
template <int kWarps>
__device__ __forceinline__ void widen_page(uint32_t wide, uint32_t codes, int warp) {
    // Eight lanes that access memory together take four chunks of keys a and a ^ 5: their loads, and their
    // stores of one chunk each, fall on different banks.
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int chunk = lane % 4, half = lane / 8 % 2, a = lane / 16, key = lane & 4 ? a ^ 5 : a;
    const uint32_t base = key * 128 + warp * 1024;
    const uint32_t from = codes + base + ((half * 4 + chunk) ^ key) * 16;
    const uint32_t to = wide + half * kWideHalfBytes + base + ((2 * chunk) ^ key) * 16;
    constexpr uint32_t kTwoKeysOn = 2 * 128 ^ 2 * 16;  // key ^ 2
    constexpr int kTurns = (kWidePage / 8 + kWarps - 1) / kWarps;
    const auto in_page = [&](int turn) {  // eight keys a turn
        return (turn + 1) * kWarps <= kWidePage / 8 || warp + turn * kWarps < kWidePage / 8;
    };
    // Two turns ahead: under the traffic of the products a load takes longer than a turn.
    uint32_t x[2][2][4];
    const auto load = [&](int turn) {
        if (!in_page(turn)) return;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            ptx::load_shared(x[turn % 2][i], (from ^ i * kTwoKeysOn) + turn * kWarps * 1024);
    };
    load(0);
    load(1);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
        if (!in_page(turn)) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            uint32_t y[8];
#pragma unroll
            for (int j = 0; j < 4; ++j) ptx::decode_e4m3(x[turn % 2][i][j], y[2 * j], y[2 * j + 1]);
            const uint32_t at = to ^ i * kTwoKeysOn;
            ptx::store_shared(at + turn * kWarps * 1024, y[0], y[1], y[2], y[3]);
            ptx::store_shared((at ^ 16) + turn * kWarps * 1024, y[4], y[5], y[6], y[7]);
        }
        if (turn + 2 < kTurns) load(turn + 2);
    }
}

/// In place: 64 rows of bf16, two halves of 64 dimensions `half_bytes` apart, become f16, scaled by a power
/// of two to at most 2^15, so that f16 holds every bf16 that matters beside the largest one of its row
/// exactly. By the 128 threads of a warpgroup; returns what row threadIdx / 2 of them must be multiplied by.
/// The caller fences and synchronises.
__device__ __forceinline__ float rows_to_f16(uint32_t rows, uint32_t half_bytes) {
    const int tid = static_cast<int>(threadIdx.x) % 128;
    const uint32_t row = rows + tid / 2 * 128 + tid % 2 * half_bytes;
    const auto at = [&](int i) { return row + ((i + tid / 2) % 8 * 16); };  // rows start on different banks
    uint32_t largest = 0;                                                   // magnitude bits of a bf16
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        uint32_t x[4];
        ptx::load_shared(x, at(i));
#pragma unroll
        for (int j = 0; j < 4; ++j) largest = __vmaxu2(largest, x[j] & 0x7FFF7FFF);
    }
    largest = max(largest & 0xFFFF, largest >> 16);
    largest = max(largest, __shfl_xor_sync(kFull, largest, 1));
    const uint32_t exponent = max(largest >> 7, 15u);
    const float shrink = __uint_as_float((268 - exponent) << 23);  // 2^(14 - (exponent - 127))
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        uint32_t x[4];
        ptx::load_shared(x, at(i));
#pragma unroll
        for (int j = 0; j < 4; ++j)
            x[j] = ptx::pack_f16(__uint_as_float(x[j] << 16) * shrink,
                                 __uint_as_float(x[j] & 0xFFFF0000u) * shrink);
        ptx::store_shared(at(i), x[0], x[1], x[2], x[3]);
    }
    return __uint_as_float((exponent - 14) << 23);
}

}  // namespace mmx::cuda
