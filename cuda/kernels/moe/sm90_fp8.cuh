#pragma once

#include <type_traits>

#include "cpp/core/params/fp8.h"
#include "cuda/common/chain.h"
#include "cuda/common/gated_act.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/common/ptx/store.cuh"
#include "cuda/common/ptx/wgmma.cuh"
#include "cuda/common/ptx/wgmma_e4m3.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/moe/work_list.cuh"

/// Grouped GEMM of e4m3 rows with e4m3 weights, D[m, n] = sum over k blocks of 128 of (A . B^T over the
/// block) * A's scale * B's scale. Weights are the M operand, rows of A the N operand, so that a tile has as
/// many columns as an expert has rows. Each block's product is summed by the tensor cores and added in fp32:
/// the result of a row does not depend on its tile.
namespace mmx::cuda::sm90 {

inline constexpr int kFp8Block = 128;  // of k per scale; bytes of a row of a stage
inline constexpr int kFp8Half = 64;    // weight rows of one product

struct Fp8Job {
    const uint8_t* x;            // rows of x_stride bytes
    const float* x_scale;        // rows of num_steps
    const float* weight_scale;   // [num_experts, scale_rows, num_steps]
    const int32_t* offsets;      // [num_experts + 1]; or null, one expert with num_rows rows
    const int32_t* sorted_rows;  // row m is x[sorted_rows[m] / topk]; or null, x[m]
    void* out;                   // gate and up: e4m3 [.., inter]; else bf16 rows of out_stride
    float* out_scale;            // gate and up: [.., inter / 128]
    int64_t x_stride, out_stride;
    int num_experts, num_rows, num_x_rows, topk, num_steps, scale_rows, weight_rows, num_weight_tiles;
    Activation activation;  // these three for gate and up only
    float alpha, limit;
};

/// Rows are copied by box where they lie in order, and gathered by threads for gate and up.
struct Fp8Maps {
    CUtensorMap weight, rows;
};
inline constexpr int kFp8BoxRows = 8;  // of x

/// Tiles of kTileRows weight rows (256; not gate and up: 128, 64, 32) x at most kMaxHeight rows. A warpgroup
/// owns up to 128 weight rows in halves of 64; of gate and up 64 rows each, which meet in one thread.
/// kCluster 2: the blocks of a pair share their weights where they differ in rows.
template <bool kGateUp_, int kTileRows_, int kMaxHeight_, int kStages_, int kCluster_>
struct Fp8Config {
    static constexpr bool kGateUp = kGateUp_;
    static constexpr int kTileRows = kTileRows_, kMaxHeight = kMaxHeight_, kStages = kStages_,
                         kCluster = kCluster_;
    static constexpr int kGroups = kTileRows == 256 ? 2 : 1, kHalves = kTileRows >= 128 ? 2 : 1;
    static_assert(!kGateUp || kGroups == 2, "a tile is the 128 channels that share a scale");
    static_assert(kCluster == 1 || kGroups == 2, "each block of a pair loads one of two boxes");
    static constexpr int kThreads = 128 * (1 + kGroups), kBlocksPerSm = kGroups == 1 ? 2 : 1;
    static constexpr int kBoxRows = kTileRows / kHalves;  // a stage has kHalves boxes of weight rows
    static constexpr int kBoxBytes = kBoxRows * kFp8Block;
    static constexpr int kChannels = kGateUp ? kTileRows / 2 : kTileRows / kGroups;  // of one staged row
    // Output is transposed here; 16 bytes more per row than needed keep it free of bank conflicts.
    static constexpr int kStagedRow = kChannels * (kGateUp ? 1 : 2) + 16;
    static constexpr int kStagedRows = kGateUp ? kMaxHeight : kGroups * 32;
    // Products of a row's scale with those of gate and up, or of each group's block of weights. They lie as a
    // thread of the products wants them: those of its columns 8j + 2t, + 1 in a run.
    static constexpr int kScaleSets = kGateUp ? 2 : kGroups;
    static constexpr int kScaleRun = kMaxHeight / 4 + (kMaxHeight == 8 ? 6 : 4);
    __host__ __device__ static constexpr int scale_place(int row) {
        return row % 8 / 2 * kScaleRun + row / 8 * 2 + row % 2;
    }
};

template <class C>
struct Fp8Shared {
    alignas(1024) uint8_t weights[C::kStages][(C::kTileRows < 64 ? 64 : C::kTileRows) * kFp8Block];
    alignas(1024) uint8_t rows[C::kStages][C::kMaxHeight * kFp8Block];
    alignas(16) float scale[C::kStages][C::kScaleSets][4 * C::kScaleRun];
    alignas(16) uint8_t staged[C::kStagedRows * C::kStagedRow];
    float amax[C::kGateUp ? 4 * C::kGroups : 1][C::kMaxHeight];
    float factor[C::kMaxHeight];
    uint64_t full[C::kStages], empty[C::kStages];
    MoeWorkList<C::kMaxHeight, C::kCluster> list;
};

struct Fp8Cursor {
    int stage = 0, phase = 0;
    template <int kStages>
    __device__ __forceinline__ void advance() {
        if (++stage == kStages) stage = 0, phase ^= 1;
    }
};

template <class C>
__device__ __forceinline__ void fp8_produce(const Fp8Job& job, const Fp8Maps& maps, Fp8Shared<C>& shared,
                                            int first_item, int item_step, int rank) {
    constexpr int kThreads = 128, kChunks = kFp8Block / 16;
    constexpr int kRowsPerPass = kThreads / kChunks,
                  kPasses = (C::kMaxHeight + kRowsPerPass - 1) / kRowsPerPass;
    const int tid = static_cast<int>(threadIdx.x), chunk = tid % kChunks, first = tid / kChunks;
    const int num_items = shared.list.num_items();
    const auto load_weights = [&](const MoeUnit& unit, int stage, int step) {
        // Boxes: gate and up; or the upper and the lower half of the tile's rows.
        const int box_step = C::kGateUp ? job.weight_rows / 2 : C::kBoxRows;
        int row = unit.weight_tile * (C::kGateUp ? kFp8Block : C::kTileRows);
        ptx::barrier_arrive_expect(shared.full[stage],
                                   C::kHalves * C::kBoxBytes + (C::kGateUp ? 0 : unit.height * kFp8Block));
#pragma unroll
        for (int box = 0; box < C::kHalves; ++box) {
            uint8_t* to = shared.weights[stage] + box * C::kBoxBytes;
            if (C::kCluster == 2 && unit.is_weight_shared) {
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
        const int m = unit.first_row + min(i, unit.num_rows - 1);
        return job.sorted_rows ? job.sorted_rows[m] / job.topk : m;
    };

    Fp8Cursor at;
    int ahead = 0;  // steps whose weights were asked for before the predecessor's end
    if (!C::kGateUp && !job.offsets) {
        if (first_item < num_items) {
            const MoeUnit unit = shared.list.unit(first_item, rank);
            ahead = min(C::kStages, job.num_steps);
            if (tid == 0)
                for (int step = 0; step < ahead; ++step) load_weights(unit, step, step);
        }
        ptx::wait_for_predecessors();
        ptx::let_successors_start();
    }
    for (int item = first_item; item < num_items; item += item_step) {
        const MoeUnit unit = shared.list.unit(item, rank);
        const uint8_t* from[kPasses];
#pragma unroll
        for (int i = 0; i < kPasses; ++i)
            from[i] = job.x + row_of(unit, first + i * kRowsPerPass) * job.x_stride + chunk * 16;
        const float* x_scale = job.x_scale + static_cast<int64_t>(row_of(unit, tid)) * job.num_steps;
        const float* weight_scale[C::kScaleSets];
#pragma unroll
        for (int i = 0; i < C::kScaleSets; ++i) {
            const int block = C::kGateUp ? unit.weight_tile + i * (job.scale_rows / 2)
                                         : unit.weight_tile * C::kTileRows / kFp8Block + i;
            weight_scale[i] = job.weight_scale + (static_cast<int64_t>(unit.expert) * job.scale_rows +
                                                  min(block, job.scale_rows - 1)) *
                                                     job.num_steps;
        }
        // One step ahead of their use.
        float row_scale = x_scale[0], block_scale[C::kScaleSets];
#pragma unroll
        for (int i = 0; i < C::kScaleSets; ++i) block_scale[i] = weight_scale[i][0];
        for (int step = 0; step < job.num_steps; ++step) {
            ptx::barrier_wait(shared.empty[at.stage], at.phase ^ 1);
            if (tid == 0 && ahead <= 0) load_weights(unit, at.stage, step);
            --ahead;
            if constexpr (C::kGateUp) {
                const uint32_t to = ptx::smem_address(shared.rows[at.stage]);
#pragma unroll
                for (int i = 0; i < kPasses; ++i) {
                    const int row = first + i * kRowsPerPass;
                    if (row < unit.height)
                        ptx::copy_async_16(to + row * kFp8Block + ((chunk ^ (row & 7)) * 16),
                                           from[i] + step * kFp8Block);
                }
            } else if (const int box = tid - 32; box >= 0 && box < unit.height / kFp8BoxRows) {
                ptx::tma_load_3d(shared.rows[at.stage] + box * kFp8BoxRows * kFp8Block, maps.rows,
                                 shared.full[at.stage], step * kFp8Block, unit.first_row + box * kFp8BoxRows,
                                 0);
            }
            if (tid < unit.height) {
#pragma unroll
                for (int i = 0; i < C::kScaleSets; ++i)
                    shared.scale[at.stage][i][C::scale_place(tid)] = row_scale * block_scale[i];
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
__device__ __forceinline__ void fp8_promote(float (&acc)[kN / 2], const float (&part)[kN / 2],
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
__device__ __forceinline__ void fp8_multiply(float (&acc)[C::kHalves][kN / 2], Fp8Shared<C>& shared,
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
            ptx::wgmma_e4m3<kN>(part, a + (k * 32 >> 4), b + (k * 32 >> 4), k > 0);
        ptx::wgmma_commit();
    };
    constexpr bool kStagger = C::kGroups == 2 && !kBothHalves;
    for (int step = 0; step < num_steps; ++step) {
        ptx::barrier_wait(shared.full[at.stage], at.phase);
        if constexpr (C::kGateUp) ptx::fence_async_proxy();
        // Half a beat apart: one group scales its sums while the other multiplies.
        if (kStagger && step == 0 && group == 1) ptx::named_barrier(4, 256);
        const auto scale = [&](int h) {
            return shared.scale[at.stage][C::kGateUp ? h : group] + lane_idx % 4 * C::kScaleRun;
        };
        if constexpr (C::kHalves == 2 && kBothHalves) {
            float part[2][kN / 2];
            multiply(part[0], 0);
            multiply(part[1], 1);
            ptx::wgmma_wait<1>();
            ptx::keep_registers(part[0]);
            fp8_promote<kN>(acc[0], part[0], scale(0));
            ptx::wgmma_wait<0>();
            ptx::keep_registers(part[1]);
            fp8_promote<kN>(acc[1], part[1], scale(1));
        } else {
            float part[kN / 2];
#pragma unroll
            for (int h = 0; h < C::kHalves; ++h) {
                multiply(part, h);
                ptx::wgmma_wait<0>();
                ptx::keep_registers(part);
                if (kStagger && step == 0 && h == 0 && group == 0) ptx::named_barrier_arrive(4, 256);
                fp8_promote<kN>(acc[h], part, scale(h));
            }
        }
        if constexpr (C::kCluster == 2) {
            if (lane_idx < 2) ptx::barrier_arrive_at(shared.empty[at.stage], lane_idx);
        } else {
            if (lane_idx == 0) ptx::barrier_arrive(shared.empty[at.stage]);
        }
        at.template advance<C::kStages>();
    }
}

__device__ __forceinline__ float quick_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

/// One exchange of fp8_column_amax: this lane keeps the lower or the upper kCount columns; returns which, as
/// the number of the first.
template <int kCount, int kColumns>
__device__ __forceinline__ int fp8_halve(float (&most)[kColumns], int offset) {
    const bool is_upper = (threadIdx.x & offset) != 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float theirs = is_upper ? most[i] : most[i + kCount];
        most[i] = fmaxf(is_upper ? most[i + kCount] : most[i], __shfl_xor_sync(0xFFFFFFFFu, theirs, offset));
    }
    return is_upper ? kCount : 0;
}

/// amax[column] = largest magnitude of the warp's 16 rows. Lanes that differ in rows halve the columns
/// between them with every exchange.
template <int kN>
__device__ __forceinline__ void fp8_column_amax(float* amax, const float (&h)[kN / 2]) {
    constexpr int kColumns = (kN / 4 + 7) / 8 * 8;  // of a lane
    const int lane_idx = static_cast<int>(threadIdx.x) % 32;
    float most[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
        most[i] = i < kN / 4 ? fmaxf(fabsf(h[i / 2 * 4 + i % 2]), fabsf(h[i / 2 * 4 + i % 2 + 2])) : 0.0f;
    int first = fp8_halve<kColumns / 2>(most, 16) + fp8_halve<kColumns / 4>(most, 8);
    first += fp8_halve<kColumns / 8>(most, 4);
#pragma unroll
    for (int c = 0; c < kColumns / 8; ++c) {
        const int i = first + c, column = i / 2 * 8 + lane_idx % 4 * 2 + i % 2;
        if (column < kN) amax[column] = most[c];
    }
}

/// Gate and up: the activation in fp32, then e4m3 with a scale per row and 128 channels.
template <class C, int kN>
__device__ __forceinline__ void fp8_store_gate_up(const Fp8Job& job, float (&acc)[C::kHalves][kN / 2],
                                                  Fp8Shared<C>& shared, const MoeUnit& unit, int group) {
    constexpr int kConsumers = 128 * C::kGroups;
    const int tid = static_cast<int>(threadIdx.x) - 128, warp_idx = tid / 32 % 4, lane_idx = tid % 32;
    const int t = lane_idx % 4;
    float (&h)[kN / 2] = acc[0];
    // Few instructions and no calls: this code runs once per tile, straight from the L2.
    if (job.activation == Activation::kSilu) {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) h[i] = h[i] * acc[1][i] * quick_sigmoid(h[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) {
            const float gate = h[i] > job.limit ? job.limit : h[i];
            float up = acc[1][i] > job.limit ? job.limit : acc[1][i];
            up = up < -job.limit ? -job.limit : up;
            h[i] = gate * quick_sigmoid(job.alpha * gate) * (up + 1.0f);
        }
    }
    fp8_column_amax<kN>(shared.amax[group * 4 + warp_idx], h);
    ptx::named_barrier(1, kConsumers);
    float most = 0;
    if (tid < kN) {
#pragma unroll
        for (int i = 0; i < 4 * C::kGroups; ++i) most = fmaxf(most, shared.amax[i][tid]);
    }
    if (tid < kN) {
        most = fmaxf(most, kFp8LeastAmax);
        shared.factor[tid] = kFp8Max / most;
        if (tid < unit.num_rows)
            job.out_scale[static_cast<int64_t>(unit.first_row + tid) * (job.weight_rows / 256) +
                          unit.weight_tile] = most / kFp8Max;
    }
    ptx::named_barrier(1, kConsumers);
    // A pair of 8-bit channels g and g + 8 travels as one 16-bit element through the transpose.
    const int slab = group * 4 + warp_idx;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
        const float2 f = *reinterpret_cast<const float2*>(&shared.factor[8 * j + 2 * t]);
        const uint32_t left = ptx::pack_e4m3(h[4 * j] * f.x, h[4 * j + 2] * f.x);
        const uint32_t right = ptx::pack_e4m3(h[4 * j + 1] * f.y, h[4 * j + 3] * f.y);
        uint8_t* to = shared.staged + (8 * j + lane_idx % 8) * C::kStagedRow + slab * 16;
        ptx::store_matrix_transposed(ptx::smem_address(to), left | right << 16);
    }
    ptx::named_barrier(1, kConsumers);
    constexpr int kSlabs = 4 * C::kGroups;
    for (int i = tid; i < unit.num_rows * kSlabs; i += kConsumers) {
        const int row = i / kSlabs, column = i % kSlabs;
        const uint4 v = *reinterpret_cast<const uint4*>(shared.staged + row * C::kStagedRow + column * 16);
        const uint4 sorted = make_uint4(__byte_perm(v.x, v.y, 0x6420), __byte_perm(v.z, v.w, 0x6420),
                                        __byte_perm(v.x, v.y, 0x7531), __byte_perm(v.z, v.w, 0x7531));
        uint8_t* out = static_cast<uint8_t*>(job.out) +
                       static_cast<int64_t>(unit.first_row + row) * (job.weight_rows / 2) +
                       unit.weight_tile * 128 + column * 16;
        *reinterpret_cast<uint4*>(out) = sorted;
    }
}

template <class C, int kN>
__device__ __forceinline__ void fp8_store_rows(const Fp8Job& job, const float (&acc)[C::kHalves][kN / 2],
                                               Fp8Shared<C>& shared, const MoeUnit& unit, int group) {
    const int tid = static_cast<int>(threadIdx.x) % 128, warp_idx = tid / 32, lane_idx = tid % 32;
    uint8_t* staged = shared.staged + group * 32 * C::kStagedRow;
    const int channel = unit.weight_tile * C::kTileRows + group * 128;
    const bool in_range = channel < job.weight_rows;
    bf16* out = static_cast<bf16*>(job.out) + unit.first_row * job.out_stride + channel;
    // Where this lane's matrix row starts: matrices are the halves' rows 0 to 7 and 8 to 15 of the warp.
    const int matrix = C::kHalves == 2 ? lane_idx / 8 : 0;
    const int column = matrix / 2 * 64 + warp_idx * 16 + matrix % 2 * 8;
#pragma unroll
    for (int j0 = 0; j0 < kN / 8; j0 += 4) {
#pragma unroll
        for (int j = j0; j < kN / 8 && j < j0 + 4; ++j) {
            const auto pair = [&](int h, int i) {
                return ptx::pack_bf16(acc[h][4 * j + 2 * i], acc[h][4 * j + 2 * i + 1]);
            };
            const uint32_t to =
                ptx::smem_address(staged + ((j - j0) * 8 + lane_idx % 8) * C::kStagedRow) + column * 2;
            if constexpr (C::kHalves == 2) {
                ptx::store_matrices_transposed(to, {pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)});
            } else if (warp_idx * 16 < C::kChannels) {
                ptx::store_matrix_transposed(to, pair(0, 0));
                ptx::store_matrix_transposed(to + 16, pair(0, 1));
            }
        }
        ptx::named_barrier(2 + group, 128);
        constexpr int kPieces = C::kChannels / 8;  // of 16 bytes per row
        const int count = min(32, unit.num_rows - 8 * j0);
        if (in_range)
            for (int i = tid; i < count * kPieces; i += 128) {
                const int row = i / kPieces, piece = i % kPieces;
                const uint4 v = *reinterpret_cast<const uint4*>(staged + row * C::kStagedRow + piece * 16);
                *reinterpret_cast<uint4*>(out + (8 * j0 + row) * job.out_stride + piece * 8) = v;
            }
        ptx::named_barrier(2 + group, 128);
    }
}

/// Calls f with the height as a constant: wgmma's n is part of the instruction.
template <int kN, class F>
__device__ __forceinline__ void with_height(int height, F&& f) {
    if (height == kN) return f(std::integral_constant<int, kN>{});
    if constexpr (kN > 8) with_height<kN - 8>(height, f);
}

template <class C>
__device__ __forceinline__ void fp8_consume(const Fp8Job& job, Fp8Shared<C>& shared, int first_item,
                                            int item_step, int rank) {
    const int group = static_cast<int>(threadIdx.x) / 128 - 1;
    const int num_items = shared.list.num_items();
    Fp8Cursor at;
    for (int item = first_item; item < num_items; item += item_step) {
        const MoeUnit unit = shared.list.unit(item, rank);
        with_height<C::kMaxHeight>(unit.height, [&](auto height) {
            constexpr int kN = decltype(height)::value;
            float acc[C::kHalves][kN / 2] = {};
            fp8_multiply<C, kN>(acc, shared, at, job.num_steps, group);
            if (!unit.is_valid) return;
            if constexpr (C::kGateUp)
                fp8_store_gate_up<C, kN>(job, acc, shared, unit, group);
            else
                fp8_store_rows<C, kN>(job, acc, shared, unit, group);
        });
    }
}

/// The work list of the plan; without a plan, of one expert with all rows.
template <class List>
__device__ __forceinline__ void fp8_fill_list(const Fp8Job& job, List& list) {
    if (job.offsets) return list.fill(job.offsets, job.num_experts, job.num_weight_tiles);
    if (threadIdx.x == 0) list.fill_one(job.num_rows, job.num_weight_tiles);
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksPerSm)
    fp8_gemm_kernel(const __grid_constant__ Fp8Job job, const __grid_constant__ Fp8Maps maps) {
    extern __shared__ uint8_t raw[];
    auto& shared = *reinterpret_cast<Fp8Shared<C>*>(raw + (1024 - ptx::smem_address(raw) % 1024) % 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::kStages; ++i) {
            ptx::barrier_init(shared.full[i], (C::kGateUp ? 128 : 0) + 4 + 1);
            ptx::barrier_init(shared.empty[i], 4 * C::kGroups * C::kCluster);
        }
        ptx::barrier_init_done();
    }
    // A dense product knows its work without its predecessor and asks for weights first (fp8_produce).
    if (C::kGateUp || job.offsets) {
        ptx::wait_for_predecessors();
        ptx::let_successors_start();
    }
    fp8_fill_list(job, shared.list);
    int rank = 0;
    if constexpr (C::kCluster > 1) {
        rank = ptx::cluster_rank();
        ptx::cluster_sync();
    } else {
        __syncthreads();
    }
    const int first_item = static_cast<int>(blockIdx.x) / C::kCluster,
              item_step = static_cast<int>(gridDim.x) / C::kCluster;
    if (threadIdx.x < 128) {
        if constexpr (C::kGroups == 2) ptx::release_registers<40>();
        fp8_produce<C>(job, maps, shared, first_item, item_step, rank);
    } else {
        if constexpr (C::kGroups == 2) ptx::take_registers<232>();
        fp8_consume<C>(job, shared, first_item, item_step, rank);
    }
    // A block's shared memory must outlive its neighbour's last arrival there.
    if constexpr (C::kCluster > 1) ptx::cluster_sync();
}

template <class C>
void launch_fp8_gemm(const char* op, const Fp8Job& job, const void* weight, Stream stream) {
    const int64_t k = int64_t{job.num_steps} * kFp8Block;
    const Fp8Maps maps{
        make_tensor_map<3>(weight, {k, job.weight_rows, job.num_experts}, {k, job.weight_rows * k},
                           {kFp8Block, C::kBoxRows, 1}, CU_TENSOR_MAP_DATA_TYPE_UINT8),
        make_tensor_map<3>(job.x, {k, job.num_x_rows, 1}, {k, job.num_x_rows * k},
                           {kFp8Block, kFp8BoxRows, 1}, CU_TENSOR_MAP_DATA_TYPE_UINT8)};

    const unsigned grid = static_cast<unsigned>(num_multiprocessors() * C::kBlocksPerSm);
    LaunchChain{op,          dim3(grid / C::kCluster * C::kCluster),
                C::kThreads, sizeof(Fp8Shared<C>) + 1024,
                stream,      C::kCluster}(fp8_gemm_kernel<C>, job, maps);
}

}  // namespace mmx::cuda::sm90
