#pragma once

#include "cuda/kernels/moe/sm90_fp8_tile.cuh"

/// Rows of x are the first operand of the products: a warpgroup has 64 of them and both blocks of weights of
/// a tile. A thread then needs the scales of two rows, not of 32 columns, which is what limits large tiles
/// the other way round.
namespace mmx::cuda::sm90 {

inline constexpr int kFp8RowsN = 128;   // weights of one product
inline constexpr int kFp8ScaleRun = 4;  // steps whose scales a quad has at a time, a step a lane

template <class C>
__device__ __forceinline__ void fp8_multiply_rows(float (&acc)[2][kFp8RowsN / 2], Fp8Shared<C>& shared,
                                                  Fp8Cursor& at, const Fp8Job& job, const MoeUnit& unit,
                                                  int group) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32, quad = lane_idx / 4 * 4;
    const int row = group * kFp8Half + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane_idx / 4;
    const float* from[4];  // scales along k of rows g and g + 8, of both blocks of weights
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int m = job.x_row(unit.first_row + min(row + 8 * i, unit.num_rows - 1));
        from[i] = job.x_scale + static_cast<int64_t>(m) * job.num_steps;
        from[2 + i] = job.weight_scales<C>(unit, i);
    }
    float next[4];  // a lane has one step of a run, one run ahead
    const auto load = [&](int first) {
        const int step = min(first + lane_idx % kFp8ScaleRun, job.num_steps - 1);
#pragma unroll
        for (int i = 0; i < 4; ++i) next[i] = __ldg(from[i] + step);
    };
    load(0);
    for (int first = 0; first < job.num_steps; first += kFp8ScaleRun) {
        const float scales[2][2] = {{next[0] * next[2], next[0] * next[3]},
                                    {next[1] * next[2], next[1] * next[3]}};
        if (first + kFp8ScaleRun < job.num_steps) load(first + kFp8ScaleRun);
        const int count = min(kFp8ScaleRun, job.num_steps - first);
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            ptx::barrier_wait(shared.full[at.stage], at.phase);
            const ptx::UniformOperand a(ptx::smem_address(shared.rows[at.stage]) +
                                        group * kFp8Half * kFp8Block);
            const ptx::UniformOperand b(ptx::smem_address(shared.weights[at.stage]));
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float part[kFp8RowsN / 2];
                ptx::wgmma_begin();
#pragma unroll
                for (int k = 0; k < kFp8Block; k += 32)
                    ptx::Wgmma<kFp8RowsN>::e4m3(part, a + k, b + (h * C::kBoxBytes + k), k > 0);
                ptx::wgmma_commit();
                const float upper = __shfl_sync(0xFFFFFFFFu, scales[0][h], quad | i);
                const float lower = __shfl_sync(0xFFFFFFFFu, scales[1][h], quad | i);
                ptx::wgmma_wait<0>();
                ptx::keep_registers(part);
                if (h == 1) fp8_release<C>(shared, at.stage);
#pragma unroll
                for (int j = 0; j < kFp8RowsN / 2; j += 4) {
                    acc[h][j] = fmaf(part[j], upper, acc[h][j]);
                    acc[h][j + 1] = fmaf(part[j + 1], upper, acc[h][j + 1]);
                    acc[h][j + 2] = fmaf(part[j + 2], lower, acc[h][j + 2]);
                    acc[h][j + 3] = fmaf(part[j + 3], lower, acc[h][j + 3]);
                }
            }
            at.template advance<C::kStages>();
        }
    }
}

template <class C>
__device__ __forceinline__ void fp8_store_rows(const Fp8Job& job, const float (&acc)[2][kFp8RowsN / 2],
                                               uint8_t* staged, const MoeUnit& unit, int warp_row) {
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    const uint32_t to = ptx::smem_address(staged) + lane_idx % 16 * C::kStagedRow + lane_idx / 16 * 16;
    const int channel = unit.weight_tile * C::kTileRows;
    bf16* out = static_cast<bf16*>(job.out) + (unit.first_row + warp_row) * job.out_stride + channel;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (channel + h * kFp8RowsN >= job.weight_rows) break;
#pragma unroll
        for (int j0 = 0; j0 < kFp8RowsN / 8; j0 += 8) {
            const auto pair = [&](int j, int i) {
                return ptx::pack_bf16(acc[h][4 * j + 2 * i], acc[h][4 * j + 2 * i + 1]);
            };
#pragma unroll
            for (int j = j0; j < j0 + 8; j += 2)
                ptx::store_matrices(to + (j - j0) * 16,
                                    {pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1)});
            __syncwarp();
#pragma unroll
            for (int row = lane_idx / 8; row < 16; row += 4) {
                const int piece = lane_idx % 8;  // of 16 bytes
                if (warp_row + row < unit.num_rows)
                    *reinterpret_cast<uint4*>(out + row * job.out_stride + h * kFp8RowsN + j0 * 8 +
                                              piece * 8) =
                        *reinterpret_cast<const uint4*>(staged + row * C::kStagedRow + piece * 16);
            }
            __syncwarp();
        }
    }
}

template <class C>
__device__ __forceinline__ void fp8_consume_rows(const Fp8Job& job, Fp8Shared<C>& shared, int first_item,
                                                 int item_step) {
    const int warp_idx = static_cast<int>(threadIdx.x) / 32 - 4, group = warp_idx / 4;
    uint8_t* staged = shared.staged + warp_idx * 16 * C::kStagedRow;
    Fp8Cursor at;
    for (int item = first_item; item < shared.list.num_items(); item += item_step) {
        const MoeUnit unit = shared.list.unit(item, 0);
        if (group * kFp8Half >= unit.num_rows) {  // in step only
            for (int step = 0; step < job.num_steps; ++step) {
                ptx::barrier_wait(shared.full[at.stage], at.phase);
                fp8_release<C>(shared, at.stage);
                at.template advance<C::kStages>();
            }
            continue;
        }
        float acc[2][kFp8RowsN / 2] = {};
        fp8_multiply_rows<C>(acc, shared, at, job, unit, group);
        fp8_store_rows<C>(job, acc, staged, unit, warp_idx * 16);
    }
}

}  // namespace mmx::cuda::sm90
