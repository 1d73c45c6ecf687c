#pragma once

#include "cuda/kernels/moe/sm90_fp8_tile.cuh"

/// Weights are the first operand, and pairs of thread blocks that differ in rows share them. Threads that
/// feed a stage also make the products of both scales: with this many columns they would be made too often.
namespace mmx::cuda::sm90 {

template <class C>
__device__ __forceinline__ void fp8_produce_pairs(const Fp8Job& job, const Fp8Maps& maps,
                                                  Fp8Shared<C>& shared, int first_item, int item_step,
                                                  int rank) {
    constexpr int kThreads = 128, kChunks = kFp8Block / 16;
    constexpr int kRowsPerPass = kThreads / kChunks,
                  kPasses = (C::kMaxHeight + kRowsPerPass - 1) / kRowsPerPass;
    const int tid = static_cast<int>(threadIdx.x), chunk = tid % kChunks, first = tid / kChunks;
    const int num_items = shared.list.num_items();
    const auto load_weights = [&](const MoeUnit& unit, int stage, int step) {
        // Boxes: gate and up; or the upper and the lower half of the tile's rows.
        const int box_step = C::kGateUp ? job.weight_rows / 2 : C::kBoxRows;
        const int row = unit.weight_tile * (C::kGateUp ? kFp8Block : C::kTileRows);
        ptx::barrier_arrive_expect(shared.full[stage],
                                   C::kHalves * C::kBoxBytes + (C::kGateUp ? 0 : unit.height * kFp8Block));
#pragma unroll
        for (int box = 0; box < C::kHalves; ++box) {
            uint8_t* to = shared.weights[stage] + box * C::kBoxBytes;
            if (unit.is_weight_shared) {
                if (box == rank)
                    ptx::tma_load_3d_multicast(to, maps.weight, shared.full[stage], 3, step * kFp8Block,
                                               row + box * box_step, unit.expert);
            } else {
                ptx::tma_load_3d(to, maps.weight, shared.full[stage], step * kFp8Block, row + box * box_step,
                                 unit.expert);
            }
        }
    };
    const auto row_of = [&](const MoeUnit& unit, int i) {
        return job.x_row(unit.first_row + min(i, unit.num_rows - 1));
    };

    Fp8Cursor at;
    for (int item = first_item; item < num_items; item += item_step) {
        const MoeUnit unit = shared.list.unit(item, rank);
        const uint8_t* from[kPasses];
#pragma unroll
        for (int i = 0; i < kPasses; ++i)
            from[i] = job.x + row_of(unit, first + i * kRowsPerPass) * job.x_stride + chunk * 16;
        const float* x_scale = job.x_scale + static_cast<int64_t>(row_of(unit, tid)) * job.num_steps;
        const float* weight_scale[C::kScaleSets];
#pragma unroll
        for (int i = 0; i < C::kScaleSets; ++i) weight_scale[i] = job.weight_scales<C>(unit, i);
        // One step ahead of their use.
        float row_scale = x_scale[0], block_scale[C::kScaleSets];
#pragma unroll
        for (int i = 0; i < C::kScaleSets; ++i) block_scale[i] = weight_scale[i][0];
        for (int step = 0; step < job.num_steps; ++step) {
            ptx::barrier_wait(shared.empty[at.stage], at.phase ^ 1);
            if (tid == 0) load_weights(unit, at.stage, step);
            if constexpr (C::kGateUp) {
                const uint32_t to = ptx::smem_address(shared.rows[at.stage]);
#pragma unroll
                for (int i = 0; i < kPasses; ++i) {
                    const int row = first + i * kRowsPerPass;
                    if (row < unit.height)
                        ptx::copy_async_16(to + row * kFp8Block + ((chunk ^ (row & 7)) * 16),
                                           from[i] + step * kFp8Block);
                }
            } else if (const int box = tid - 32; box >= 0 && box < unit.height / C::kRowBox) {
                ptx::tma_load_3d(shared.rows[at.stage] + box * C::kRowBox * kFp8Block, maps.rows,
                                 shared.full[at.stage], step * kFp8Block, unit.first_row + box * C::kRowBox,
                                 0);
            }
            if (tid < unit.height) {
#pragma unroll
                for (int i = 0; i < C::kScaleSets; ++i)
                    shared.scale.products[at.stage][i][C::scale_place(tid)] = row_scale * block_scale[i];
            }
            __syncwarp();
            if (tid % 32 == 0) ptx::barrier_arrive(shared.full[at.stage]);
            if constexpr (C::kGateUp) ptx::barrier_arrive_after_copies(shared.full[at.stage]);
            if (step + 1 < job.num_steps) {
                row_scale = x_scale[step + 1];
#pragma unroll
                for (int i = 0; i < C::kScaleSets; ++i) block_scale[i] = weight_scale[i][step + 1];
            }
            at.template advance<C::kStages>();
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/// acc += part * scale of the column; `scale`: this thread's run.
template <int kN>
__device__ __forceinline__ void fp8_promote_products(float (&acc)[kN / 2], const float (&part)[kN / 2],
                                                     const float* scale) {
    const auto promote = [&](int j, float left, float right) {
        acc[4 * j] = fmaf(part[4 * j], left, acc[4 * j]);
        acc[4 * j + 1] = fmaf(part[4 * j + 1], right, acc[4 * j + 1]);
        acc[4 * j + 2] = fmaf(part[4 * j + 2], left, acc[4 * j + 2]);
        acc[4 * j + 3] = fmaf(part[4 * j + 3], right, acc[4 * j + 3]);
    };
#pragma unroll
    for (int j = 0; j + 1 < kN / 8; j += 2) {
        const float4 s = *reinterpret_cast<const float4*>(scale + 2 * j);
        promote(j, s.x, s.y);
        promote(j + 1, s.z, s.w);
    }
    if constexpr (kN / 8 % 2 == 1) {
        const float2 s = *reinterpret_cast<const float2*>(scale + kN / 4 - 2);
        promote(kN / 8 - 1, s.x, s.y);
    }
}

template <class C, int kN>
__device__ __forceinline__ void fp8_multiply_pairs(float (&acc)[C::kHalves][kN / 2], Fp8Shared<C>& shared,
                                                   Fp8Cursor& at, int num_steps, int group) {
    constexpr bool kBothHalves = kN <= 64;  // registers for two products at a time
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    // Offset of the group's rows of half h in a stage of weights.
    const auto half_offset = [&](int h) {
        return C::kGateUp ? h * C::kBoxBytes + group * kFp8Half * kFp8Block
                          : (group * 2 + h) * kFp8Half * kFp8Block;
    };
    const auto multiply = [&](float (&part)[kN / 2], int h) {
        const uint64_t a = ptx::wgmma_operand(ptx::smem_address(shared.weights[at.stage]) + half_offset(h));
        const uint64_t b = ptx::wgmma_operand(ptx::smem_address(shared.rows[at.stage]));
        ptx::wgmma_begin();
#pragma unroll
        for (int k = 0; k < kFp8Block / 32; ++k)
            ptx::Wgmma<kN>::e4m3(part, a + (k * 32 >> 4), b + (k * 32 >> 4), k > 0);
        ptx::wgmma_commit();
    };
    constexpr bool kStagger = !kBothHalves;
    for (int step = 0; step < num_steps; ++step) {
        ptx::barrier_wait(shared.full[at.stage], at.phase);
        if constexpr (C::kGateUp) ptx::fence_async_proxy();
        // Half a beat apart: one group scales its sums while the other multiplies.
        if (kStagger && step == 0 && group == 1) ptx::named_barrier(4, 256);
        const auto scale = [&](int h) {
            return shared.scale.products[at.stage][C::kGateUp ? h : group] + lane_idx % 4 * C::kScaleRun;
        };
        if constexpr (kBothHalves) {
            float part[2][kN / 2];
            multiply(part[0], 0);
            multiply(part[1], 1);
            ptx::wgmma_wait<1>();
            ptx::keep_registers(part[0]);
            fp8_promote_products<kN>(acc[0], part[0], scale(0));
            ptx::wgmma_wait<0>();
            ptx::keep_registers(part[1]);
            fp8_promote_products<kN>(acc[1], part[1], scale(1));
        } else {
            float part[kN / 2];
#pragma unroll
            for (int h = 0; h < C::kHalves; ++h) {
                multiply(part, h);
                ptx::wgmma_wait<0>();
                ptx::keep_registers(part);
                if (kStagger && step == 0 && h == 0 && group == 0) ptx::named_barrier_arrive(4, 256);
                fp8_promote_products<kN>(acc[h], part, scale(h));
            }
        }
        fp8_release<C>(shared, at.stage);
        at.template advance<C::kStages>();
    }
}

}  // namespace mmx::cuda::sm90
