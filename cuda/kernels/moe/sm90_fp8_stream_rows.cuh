#pragma once

#include <algorithm>
#include <utility>

#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/sm90_fp8_tile.cuh"

/// Dense products of up to 64 rows. As in sm90_fp8_stream.cuh every thread block takes the same number of
/// neighbouring weight rows over all of k, but rows of x are the first operand, 64 of them whatever their
/// number: those behind the last one are whatever lies in shared memory, and their results are not kept.
namespace mmx::cuda::sm90 {

/// kColumns warpgroups share the weight rows of a tile, kN each; kTurns such sets take stages in turn and
/// hand the sums on, whose order is that of k.
template <int kN_, int kColumns_, int kTurns_, int kSteps_>
struct Fp8RowsTile {
    static constexpr int kN = kN_, kColumns = kColumns_, kTurns = kTurns_, kSteps = kSteps_;
    static constexpr int kTileRows = kN * kColumns, kSet = 128 * kColumns;
    static constexpr int kConsumers = kSet * kTurns, kThreads = kConsumers + 64;
    static constexpr int kStepBytes = kTileRows * kFp8Block, kWeightBytes = kSteps * kStepBytes;
    static_assert(kTurns == 1 || kColumns == 1);
    static constexpr bool kOneBlock = kFp8Block % kTileRows == 0;  // all weight rows of a tile share a scale
};

struct Fp8RowsShared {
    uint64_t full[Fp8RowsPlan::kMaxStages], empty[Fp8RowsPlan::kMaxStages];
    uint64_t turn[3][4];  // of a warp of a set to add to the sums
};

struct Fp8RowsRing {
    int stage, parity;
    __device__ __forceinline__ void advance(int by, int stages) {
        stage += by;
        if (stage >= stages) stage -= stages, parity ^= 1;
    }
};

/// What both threads that feed the ring and those that empty it know.
struct Fp8RowsSizes {
    int x_rows, stages, stage_bytes, rounds;  // rounds of the ring for a tile

    template <class Tile>
    __device__ __forceinline__ Fp8RowsSizes(const Fp8Job& job, const Fp8RowsPlan& plan, Tile)
        : x_rows(static_cast<int>(plan.x_rows)),
          stages(static_cast<int>(plan.stages)),
          stage_bytes((Tile::kTileRows + x_rows) * kFp8Block * Tile::kSteps),
          rounds((job.num_steps + Tile::kSteps - 1) / Tile::kSteps) {}
};

/// One thread of two: one asks for weights, of the whole ring before the predecessor has ended, the other for
/// x. A box has several steps of k: to ask for one takes 0.13 us, whatever its size.
template <class Tile, bool kWeights>
__device__ __forceinline__ void fp8_rows_fetch(const Fp8Job& job, const CUtensorMap& map,
                                               const Fp8RowsSizes& sizes, uint8_t* stages,
                                               Fp8RowsShared& shared) {
    if constexpr (!kWeights) ptx::wait_for_predecessors();
    Fp8RowsRing ring{0, 0};
    for (int tile = static_cast<int>(blockIdx.x); tile < job.num_weight_tiles;
         tile += static_cast<int>(gridDim.x)) {
        for (int round = 0; round < sizes.rounds; ++round) {
            uint64_t& full = shared.full[ring.stage];
            uint8_t* to = stages + ring.stage * sizes.stage_bytes;
            ptx::barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
            if constexpr (kWeights) {
                ptx::barrier_arrive_expect(full, sizes.stage_bytes);
                ptx::tma_load_3d(to, map, full, 0, tile * Tile::kTileRows, round * Tile::kSteps,
                                 ptx::kEvictFirst);
            } else {
                ptx::tma_load_3d(to + Tile::kWeightBytes, map, full, 0, 0, round * Tile::kSteps);
            }
            ring.advance(1, sizes.stages);
        }
    }
}

/// Products of one step, [64 rows of x, kN weight rows].
template <class Tile>
__device__ __forceinline__ void fp8_rows_multiply(float (&part)[Tile::kN / 2], const ptx::UniformOperand& x,
                                                  const ptx::UniformOperand& weight, uint32_t x_offset,
                                                  int step) {
#pragma unroll
    for (int k = 0; k < kFp8Block; k += 32)
        ptx::Wgmma<Tile::kN>::e4m3(part, x + (x_offset + k), weight + (step * Tile::kStepBytes + k), k > 0);
}

template <class Tile>
struct Fp8RowsScales {
    const float *upper, *lower;  // of rows g and g + 8 of the warp
    const float* weight;         // of the two weight blocks, `stride` apart
    int stride;
    int split;  // eights of columns before the second block

    struct Step {
        float upper[2], lower[2];
    };
    __device__ __forceinline__ Step of(int step) const {
        const float w0 = weight[step], w1 = Tile::kOneBlock ? w0 : weight[stride + step];
        const float u = upper[step], l = lower[step];
        return {{u * w0, u * w1}, {l * w0, l * w1}};
    }
    __device__ __forceinline__ void add(float (&acc)[Tile::kN / 2], const float (&part)[Tile::kN / 2],
                                        const Step& s) const {
#pragma unroll
        for (int j = 0; j < Tile::kN / 8; ++j) {
            const bool is_first = Tile::kOneBlock || j < split;
            const float u = is_first ? s.upper[0] : s.upper[1], l = is_first ? s.lower[0] : s.lower[1];
            acc[4 * j] = fmaf(part[4 * j], u, acc[4 * j]);
            acc[4 * j + 1] = fmaf(part[4 * j + 1], u, acc[4 * j + 1]);
            acc[4 * j + 2] = fmaf(part[4 * j + 2], l, acc[4 * j + 2]);
            acc[4 * j + 3] = fmaf(part[4 * j + 3], l, acc[4 * j + 3]);
        }
    }
};

template <class Tile>
__device__ __forceinline__ void fp8_rows_consume(const Fp8Job& job, const Fp8RowsSizes& sizes,
                                                 const uint8_t* stages, float* memory,
                                                 Fp8RowsShared& shared) {
    constexpr int kN = Tile::kN, kSteps = Tile::kSteps, kTurns = Tile::kTurns;
    const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32 % 4, lane_idx = tid % 32;
    const int column = tid / 128 % Tile::kColumns * kN, turn = tid / Tile::kSet;
    const int g = lane_idx / 4, t = lane_idx % 4, num_steps = job.num_steps, stride = num_steps | 1;
    const uint32_t x_step_bytes = __shfl_sync(0xFFFFFFFFu, sizes.x_rows * kFp8Block, 0);
    float* sums = memory + tid % Tile::kSet;                                // [kN / 2, kSet]
    float* weight_scale = memory + (kTurns > 1 ? kN / 2 * Tile::kSet : 0);  // [2, stride]
    float* x_scale = weight_scale + 2 * stride;                             // [x_rows, stride]
    const auto load_weight_scales = [&](int tile) {
        const int block = tile * Tile::kTileRows / kFp8Block;
        for (int i = tid; i < 2 * num_steps; i += Tile::kConsumers) {
            const int set = i >= num_steps, step = i - set * num_steps;
            ptx::copy_async_4(ptx::smem_address(weight_scale + set * stride + step),
                              job.weight_scale + min(block + set, job.scale_rows - 1) * num_steps + step);
        }
    };
    load_weight_scales(static_cast<int>(blockIdx.x));
    ptx::wait_for_predecessors();
    for (int row = tid / 32; row < job.num_rows; row += Tile::kConsumers / 32)
        for (int step = lane_idx; step < num_steps; step += 32)
            ptx::copy_async_4(ptx::smem_address(x_scale + row * stride + step),
                              job.x_scale + static_cast<int64_t>(row) * num_steps + step);
    const int row = warp_idx * 16 + g;
    const bool is_active = warp_idx * 16 < job.num_rows;
    Fp8RowsScales<Tile> scales{x_scale + min(row, sizes.x_rows - 1) * stride,
                               x_scale + min(row + 8, sizes.x_rows - 1) * stride, weight_scale, stride, 0};
    const auto weight_of = [&](const Fp8RowsRing& ring) {
        return ptx::smem_address(stages) + ring.stage * sizes.stage_bytes;
    };
    const auto give_back = [&](const Fp8RowsRing& ring) {
        if (lane_idx == 0) ptx::barrier_arrive(shared.empty[ring.stage]);
    };
    Fp8RowsRing ring{0, 0};
    ring.advance(turn, sizes.stages);
    int first_round = turn, turn_parity = turn == 0;
    for (int tile = static_cast<int>(blockIdx.x); tile < job.num_weight_tiles;
         tile += static_cast<int>(gridDim.x)) {
        const int first_row = tile * Tile::kTileRows, begin = first_row + column;
        if (tile != static_cast<int>(blockIdx.x)) {
            ptx::named_barrier(1, Tile::kConsumers);  // the last tile's have been read
            load_weight_scales(tile);
        }
        ptx::commit_copies();
        ptx::wait_for_copies<0>();
        ptx::named_barrier(1, Tile::kConsumers);
        scales.split = (kFp8Block - first_row % kFp8Block - column) / 8;
        float acc[kN / 2] = {};
        const auto store = [&] {
            bf16* out = static_cast<bf16*>(job.out) + begin + 2 * t;
#pragma unroll
            for (int j = 0; j < kN / 8; ++j) {
                if (begin + 8 * j >= job.weight_rows) break;
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    if (row + 8 * i < job.num_rows)
                        *reinterpret_cast<uint32_t*>(out + (row + 8 * i) * job.out_stride + 8 * j) =
                            ptx::pack_bf16(acc[4 * j + 2 * i], acc[4 * j + 2 * i + 1]);
            }
        };
        if constexpr (kTurns == 1) {
            // Products of the next two steps are under way while those of these two are added.
            constexpr int kPairs = kSteps / 2;
            const int num_pairs = sizes.rounds * kPairs;
            float part[2][2][kN / 2];
            Fp8RowsRing behind = ring;
            const auto issue = [&]<int kBuffer>(std::integral_constant<int, kBuffer>) {
                constexpr int kFirst = kPairs == 1 ? 0 : 2 * kBuffer;
                if (kFirst == 0) ptx::barrier_wait(shared.full[ring.stage], ring.parity);
                const uint32_t weight = weight_of(ring);
                const ptx::UniformOperand b(weight + column * kFp8Block), a(weight + Tile::kWeightBytes);
                ptx::wgmma_begin();
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    fp8_rows_multiply<Tile>(part[kBuffer][i], a, b, (kFirst + i) * x_step_bytes, kFirst + i);
                ptx::wgmma_commit();
                if (kFirst + 2 == kSteps) ring.advance(1, sizes.stages);
            };
            const auto finish = [&]<int kBuffer>(std::integral_constant<int, kBuffer>, int pair) {
                constexpr int kFirst = kPairs == 1 ? 0 : 2 * kBuffer;
                ptx::keep_registers(part[kBuffer][0]);
                ptx::keep_registers(part[kBuffer][1]);
                if (kFirst + 2 == kSteps) {
                    give_back(behind);
                    behind.advance(1, sizes.stages);
                }
                if (!is_active) return;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (pair * 2 + i >= num_steps) break;
                    scales.add(acc, part[kBuffer][i], scales.of(pair * 2 + i));
                }
            };
            constexpr std::integral_constant<int, 0> kEven;
            constexpr std::integral_constant<int, 1> kOdd;
            issue(kEven);
            int pair = 0;
            for (; pair + 2 < num_pairs; pair += 2) {
                issue(kOdd);
                ptx::wgmma_wait<1>();
                finish(kEven, pair);
                issue(kEven);
                ptx::wgmma_wait<1>();
                finish(kOdd, pair + 1);
            }
            if (pair + 2 == num_pairs) {
                issue(kOdd);
                ptx::wgmma_wait<1>();
                finish(kEven, pair);
                ptx::wgmma_wait<0>();
                finish(kOdd, pair + 1);
            } else {
                ptx::wgmma_wait<0>();
                finish(kEven, pair);
            }
            store();
        } else {
            int round = first_round;
            for (; round < sizes.rounds; round += kTurns) {
                float part[kSteps][kN / 2];
                ptx::barrier_wait(shared.full[ring.stage], ring.parity);
                const uint32_t weight = weight_of(ring);
                const ptx::UniformOperand b(weight + column * kFp8Block), a(weight + Tile::kWeightBytes);
                ptx::wgmma_begin();
#pragma unroll
                for (int i = 0; i < kSteps; ++i) fp8_rows_multiply<Tile>(part[i], a, b, i * x_step_bytes, i);
                ptx::wgmma_commit();
                typename Fp8RowsScales<Tile>::Step s[kSteps];
#pragma unroll
                for (int i = 0; i < kSteps; ++i) s[i] = scales.of(min(round * kSteps + i, num_steps - 1));
                ptx::wgmma_wait<0>();
#pragma unroll
                for (int i = 0; i < kSteps; ++i) ptx::keep_registers(part[i]);
                give_back(ring);
                ring.advance(kTurns, sizes.stages);
                if (!is_active) continue;

                const bool is_last = round + 1 == sizes.rounds;
                ptx::barrier_wait(shared.turn[turn][warp_idx], turn_parity);
                turn_parity ^= 1;
#pragma unroll
                for (int i = 0; i < kN / 2; ++i) acc[i] = round > 0 ? sums[i * Tile::kSet] : 0.0f;
#pragma unroll
                for (int i = 0; i < kSteps; ++i)
                    if (round * kSteps + i < num_steps) scales.add(acc, part[i], s[i]);
                if (!is_last) {
#pragma unroll
                    for (int i = 0; i < kN / 2; ++i) sums[i * Tile::kSet] = acc[i];
                }
                __syncwarp();
                if (lane_idx == 0) ptx::barrier_arrive(shared.turn[(turn + 1) % kTurns][warp_idx]);
                if (is_last) store();
            }
            first_round = round - sizes.rounds;
        }
    }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    fp8_rows_kernel(const __grid_constant__ Fp8Job job, const __grid_constant__ Fp8RowsPlan plan,
                    const __grid_constant__ Fp8Maps maps) {
    extern __shared__ uint8_t raw[];
    __shared__ Fp8RowsShared shared;
    uint8_t* stages = raw + (1024 - ptx::smem_address(raw) % 1024) % 1024;
    const Fp8RowsSizes sizes(job, plan, Tile{});
    const int tid = static_cast<int>(threadIdx.x);
    constexpr int kFetchX = Tile::kConsumers + 32;
    if (tid == Tile::kConsumers) {
        ptx::prefetch_map(maps.weight);
        ptx::prefetch_map(maps.rows);
        for (int i = 0; i < sizes.stages; ++i) {
            ptx::barrier_init(shared.full[i], 1);
            ptx::barrier_init(shared.empty[i], Tile::kSet / 32);
        }
        for (int i = 0; Tile::kTurns > 1 && i < 4 * Tile::kTurns; ++i)
            ptx::barrier_init(shared.turn[i / 4][i % 4], 1);
        ptx::barrier_init_done();
    }
    // Boxes are asked for behind this, because that takes longer than all else before the wait.
    __syncthreads();
    ptx::let_successors_start();
    if (tid < Tile::kConsumers)
        fp8_rows_consume<Tile>(job, sizes, stages,
                               reinterpret_cast<float*>(stages + sizes.stages * sizes.stage_bytes), shared);
    else if (tid == Tile::kConsumers)
        fp8_rows_fetch<Tile, true>(job, maps.weight, sizes, stages, shared);
    else if (tid == kFetchX)
        fp8_rows_fetch<Tile, false>(job, maps.rows, sizes, stages, shared);
}

template <class Tile>
void launch_fp8_rows_tile(const char* op, Fp8Job job, const void* weight, const Fp8RowsPlan& plan,
                          Stream stream) {
    const int64_t k = int64_t{job.num_steps} * kFp8Block;
    job.num_weight_tiles = static_cast<int>(plan.num_tiles);
    // k as steps of 128, so that one box has several.
    const auto map = [&](const void* base, int64_t rows, int64_t box_rows) {
        return make_tensor_map<3>(base, {kFp8Block, rows, job.num_steps}, {k, kFp8Block},
                                  {kFp8Block, box_rows, Tile::kSteps}, CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                  CU_TENSOR_MAP_L2_PROMOTION_NONE);
    };
    const Fp8Maps maps{map(weight, job.weight_rows, Tile::kTileRows), map(job.x, job.num_rows, plan.x_rows)};
    const size_t smem_bytes = static_cast<size_t>(plan.smem_bytes(job.num_steps));
    const int64_t blocks = std::min(num_multiprocessors(), plan.num_tiles);
    LaunchChain{op, dim3(static_cast<unsigned>(blocks)), Tile::kThreads, smem_bytes, stream}(
        fp8_rows_kernel<Tile>, job, plan, maps);
}

template <int kN = 8>
void launch_fp8_rows(const char* op, const Fp8Job& job, const void* weight, const Fp8RowsPlan& plan,
                     Stream stream) {
    if constexpr (kN <= Fp8RowsPlan::kMaxTileRows / 2) {
        if (plan.tile_rows == kN)
            return launch_fp8_rows_tile<Fp8RowsTile<kN, 1, 3, 4>>(op, job, weight, plan, stream);
        if constexpr (2 * kN > Fp8RowsPlan::kMaxTileRows / 2)
            if (plan.tile_rows == 2 * kN)
                return launch_fp8_rows_tile<Fp8RowsTile<kN, 2, 1, 2>>(op, job, weight, plan, stream);
        launch_fp8_rows<kN + 8>(op, job, weight, plan, stream);
    }
}

}  // namespace mmx::cuda::sm90
