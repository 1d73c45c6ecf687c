#pragma once

#include <algorithm>
#include <utility>

#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ring.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/sm90_fp8_tile.cuh"

/// Dense products of few rows: reading the weights is all that counts. Every thread block takes the same
/// number of neighbouring weight rows over all of k, at most 64, so that the multiprocessors finish together.
/// Weight rows are the first operand of the products; those behind a tile's last one are whatever lies in
/// shared memory, and their results are not kept.
namespace mmx::cuda::sm90 {

inline constexpr int kFp8StreamSteps = Fp8StreamPlan::kSteps, kFp8StreamColumns = Fp8StreamPlan::kMaxRows;
inline constexpr int kFp8StreamConsumers = 128, kFp8StreamThreads = kFp8StreamConsumers + 32;
inline constexpr int kFp8StreamStages = Fp8StreamPlan::kStages;

struct Fp8StreamShared {
    uint64_t full[Fp8StreamPlan::kStages], empty[Fp8StreamPlan::kStages];
};

__device__ __forceinline__ int fp8_stream_first_row(const Fp8Job& job, int tile) {
    return static_cast<int>(static_cast<int64_t>(job.weight_rows) * tile / job.num_weight_tiles);
}

/// One thread. A box has several steps of k: to ask for one takes 0.13 us, whatever its size. Weights of the
/// whole ring are asked for before the predecessor has ended, x after.
__device__ __forceinline__ void fp8_stream_produce(const Fp8Job& job, const Fp8Maps& maps,
                                                   const Fp8StreamPlan& plan, uint8_t* stages,
                                                   Fp8StreamShared& shared) {
    const int rounds = (job.num_steps + kFp8StreamSteps - 1) / kFp8StreamSteps;  // of the ring, per tile
    const int weight_bytes = static_cast<int>(plan.box_rows) * kFp8Block * kFp8StreamSteps;
    const int stage_bytes = weight_bytes + kFp8StreamColumns * kFp8Block * kFp8StreamSteps;
    const auto load_weights = [&](int stage, int row, int round) {
        ptx::barrier_arrive_expect(shared.full[stage], stage_bytes);
        ptx::tma_load_3d(stages + stage * stage_bytes, maps.weight, shared.full[stage], 0, row,
                         round * kFp8StreamSteps, ptx::kEvictFirst);
    };
    const auto load_x = [&](int stage, int round) {
        ptx::tma_load_3d(stages + stage * stage_bytes + weight_bytes, maps.rows, shared.full[stage], 0, 0,
                         round * kFp8StreamSteps);
    };
    const int first_tile = static_cast<int>(blockIdx.x), early = min(kFp8StreamStages, rounds);
    for (int i = 0; i < early; ++i) load_weights(i, fp8_stream_first_row(job, first_tile), i);
    ptx::wait_for_predecessors();
    for (int i = 0; i < early; ++i) load_x(i, i);
    Ring<kFp8StreamStages> ring(0);
    for (int i = 0; i < early; ++i) ring.advance();
    for (int tile = first_tile; tile < job.num_weight_tiles; tile += static_cast<int>(gridDim.x)) {
        const int row = fp8_stream_first_row(job, tile);
        for (int round = tile == first_tile ? early : 0; round < rounds; ++round) {
            ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);
            load_weights(ring.at, row, round);
            load_x(ring.at, round);
            ring.advance();
        }
    }
}

/// acc += products of one stage, whose steps are under way together, each times its scales.
__device__ __forceinline__ void fp8_stream_multiply(float (&acc)[kFp8StreamColumns / 2], uint32_t weight,
                                                    uint32_t x, uint32_t weight_step_bytes, int count,
                                                    uint64_t& empty, const float* x_scale,
                                                    const float* upper_scale, const float* lower_scale) {
    constexpr int kSteps = kFp8StreamSteps, kColumns = kFp8StreamColumns;
    float part[kSteps][kColumns / 2];
    const ptx::UniformOperand a(weight), b(x);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
        ptx::wgmma_begin();
#pragma unroll
        for (int k = 0; k < kFp8Block; k += 32)
            ptx::Wgmma<kColumns>::e4m3(part[i], a + (i * weight_step_bytes + k),
                                       b + (i * kFp8StreamColumns * kFp8Block + k), k > 0);
        ptx::wgmma_commit();
    }
    [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
        (
            [&] {
                ptx::wgmma_wait<kSteps - 1 - kIndex>();
                ptx::keep_registers(part[kIndex]);
                if (kIndex == kSteps - 1 && threadIdx.x % 32 == 0) ptx::barrier_arrive(empty);
                if (kIndex >= count) return;
                const float upper = upper_scale[kIndex], lower = lower_scale[kIndex];
#pragma unroll
                for (int j = 0; j < kColumns / 8; ++j) {
                    const float2 s =
                        *reinterpret_cast<const float2*>(x_scale + kIndex * kFp8StreamColumns + j * 8);
                    acc[4 * j] = fmaf(part[kIndex][4 * j], s.x * upper, acc[4 * j]);
                    acc[4 * j + 1] = fmaf(part[kIndex][4 * j + 1], s.y * upper, acc[4 * j + 1]);
                    acc[4 * j + 2] = fmaf(part[kIndex][4 * j + 2], s.x * lower, acc[4 * j + 2]);
                    acc[4 * j + 3] = fmaf(part[kIndex][4 * j + 3], s.y * lower, acc[4 * j + 3]);
                }
            }(),
            ...);
    }(std::make_integer_sequence<int, kSteps>{});
}

__device__ __forceinline__ void fp8_stream_consume(const Fp8Job& job, const Fp8StreamPlan& plan,
                                                   const uint8_t* stages, float* scales,
                                                   Fp8StreamShared& shared) {
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32, lane_idx = tid % 32;
    const int g = lane_idx / 4, t = lane_idx % 4, num_steps = job.num_steps;
    const int weight_step_bytes = static_cast<int>(plan.box_rows) * kFp8Block;
    const int weight_bytes = weight_step_bytes * kFp8StreamSteps,
              stage_bytes = weight_bytes + kFp8StreamColumns * kFp8Block * kFp8StreamSteps;
    float* x_scale = scales;  // [num_steps, kAllColumns]
    float* weight_scale =
        scales + num_steps * kFp8StreamColumns;  // [2, num_steps]: of the blocks that a tile meets
    const auto load_weight_scales = [&](int tile) {
        const int block = fp8_stream_first_row(job, tile) / kFp8Block;
        for (int i = tid; i < 2 * num_steps; i += kFp8StreamConsumers) {
            const int set = i >= num_steps;
            ptx::copy_async_4(
                ptx::smem_address(weight_scale + i),
                job.weight_scale + min(block + set, job.scale_rows - 1) * num_steps + i - set * num_steps);
        }
    };
    load_weight_scales(static_cast<int>(blockIdx.x));
    ptx::wait_for_predecessors();
    for (int row = warp_idx; row < job.num_rows; row += 4)
        for (int step = lane_idx; step < num_steps; step += 32)
            ptx::copy_async_4(ptx::smem_address(x_scale + step * kFp8StreamColumns + row),
                              job.x_scale + static_cast<int64_t>(row) * num_steps + step);
    Ring<kFp8StreamStages> ring(0);
    for (int tile = static_cast<int>(blockIdx.x); tile < job.num_weight_tiles;
         tile += static_cast<int>(gridDim.x)) {
        const int begin = fp8_stream_first_row(job, tile), end = fp8_stream_first_row(job, tile + 1);
        const int row = begin + warp_idx % 4 * 16 + g;
        if (tile != static_cast<int>(blockIdx.x)) {
            ptx::named_barrier(1, kFp8StreamConsumers);  // the last tile's have been read
            load_weight_scales(tile);
        }
        ptx::commit_copies();
        ptx::wait_for_copies<0>();
        ptx::named_barrier(1, kFp8StreamConsumers);
        // Weight scales of rows g and g + 8.
        const auto scales_of = [&](int i) {
            return weight_scale + (begin % kFp8Block + row - begin + i * 8 >= kFp8Block ? num_steps : 0);
        };
        const float *upper = scales_of(0), *lower = scales_of(1);
        float acc[kFp8StreamColumns / 2] = {};
        for (int step = 0; step < num_steps; step += kFp8StreamSteps) {
            ptx::barrier_wait(shared.full[ring.at], ring.parity);
            const uint32_t weight = ptx::smem_address(stages) + ring.at * stage_bytes;
            fp8_stream_multiply(acc, weight, weight + weight_bytes, weight_step_bytes, num_steps - step,
                                shared.empty[ring.at], x_scale + step * kFp8StreamColumns + 2 * t,
                                upper + step, lower + step);
            ring.advance();
        }
#pragma unroll
        for (int i = 0; i < kFp8StreamColumns / 2; ++i) {
            const int channel = row + i % 4 / 2 * 8, m = i / 4 * 8 + 2 * t + i % 2;
            if (channel < end && m < job.num_rows)
                static_cast<bf16*>(job.out)[m * job.out_stride + channel] = __float2bfloat16_rn(acc[i]);
        }
    }
}

__global__ void __launch_bounds__(kFp8StreamThreads, 1)
    fp8_stream_kernel(const __grid_constant__ Fp8Job job, const __grid_constant__ Fp8StreamPlan plan,
                      const __grid_constant__ Fp8Maps maps) {
    extern __shared__ uint8_t raw[];
    __shared__ Fp8StreamShared shared;
    uint8_t* stages = raw + (1024 - ptx::smem_address(raw) % 1024) % 1024;
    if (threadIdx.x == 0) {
        ptx::prefetch_map(maps.weight);
        ptx::prefetch_map(maps.rows);
        for (int i = 0; i < kFp8StreamStages; ++i) {
            ptx::barrier_init(shared.full[i], 1);
            ptx::barrier_init(shared.empty[i], 4);
        }
        ptx::barrier_init_done();
    }
    __syncthreads();
    ptx::let_successors_start();
    if (threadIdx.x < kFp8StreamConsumers)
        fp8_stream_consume(job, plan, stages, reinterpret_cast<float*>(stages + plan.ring_bytes()), shared);
    else if (threadIdx.x == kFp8StreamConsumers)
        fp8_stream_produce(job, maps, plan, stages, shared);
}

void launch_fp8_stream(const char* op, Fp8Job job, const void* weight, const Fp8StreamPlan& plan,
                       Stream stream) {
    const int64_t k = int64_t{job.num_steps} * kFp8Block;
    job.num_weight_tiles = static_cast<int>(plan.num_tiles);
    // k as steps of 128, so that one box has several.
    const auto map = [&](const void* base, int64_t rows, int64_t box_rows) {
        return make_tensor_map<3>(base, {kFp8Block, rows, job.num_steps}, {k, kFp8Block},
                                  {kFp8Block, box_rows, kFp8StreamSteps}, CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                  CU_TENSOR_MAP_L2_PROMOTION_NONE);
    };
    const Fp8Maps maps{map(weight, job.weight_rows, plan.box_rows),
                       map(job.x, job.num_rows, kFp8StreamColumns)};
    const size_t smem_bytes = static_cast<size_t>(plan.smem_bytes(job.num_steps));
    const int64_t blocks = std::min(num_multiprocessors(), plan.num_tiles);
    LaunchChain{op, dim3(static_cast<unsigned>(blocks)), kFp8StreamThreads, smem_bytes, stream}(
        fp8_stream_kernel, job, plan, maps);
}

}  // namespace mmx::cuda::sm90
