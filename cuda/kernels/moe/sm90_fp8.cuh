#pragma once

#include <type_traits>

#include "cpp/core/params/fp8.h"
#include "cuda/common/chain.h"
#include "cuda/common/gated_act.cuh"
#include "cuda/common/ptx/async_copy.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/ptx/mma.cuh"
#include "cuda/common/ptx/multicast.cuh"
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
    int num_experts, num_rows, topk, num_steps, scale_rows, weight_rows, num_weight_tiles;
    Activation activation;  // these three for gate and up only
    float alpha, limit;
};

/// kGroups warpgroups own 128 weight rows each. Gate and up: 64 rows of each, which meet in one thread.
/// kCluster 2: with two groups the blocks of a pair share their weights where they differ in rows; with one
/// group (gate and up only) they own the halves of the 128 channels that share a scale.
template <bool kGateUp_, int kGroups_, int kMaxHeight_, int kStages_, int kCluster_>
struct Fp8Config {
    static constexpr bool kGateUp = kGateUp_;
    static constexpr int kGroups = kGroups_, kMaxHeight = kMaxHeight_, kStages = kStages_,
                         kCluster = kCluster_;
    static constexpr bool kMulticast = kGroups == 2 && kCluster == 2;
    static constexpr bool kExchange = kGateUp && kGroups == 1;
    static_assert(!kExchange || kCluster == 2, "two blocks make up a group of channels");
    static constexpr int kThreads = 128 * (1 + kGroups), kBlocksPerSm = kGroups == 1 ? 2 : 1;
    static constexpr int kBoxRows = 64 * kGroups;  // a stage has two boxes of weight rows
    static constexpr int kBoxBytes = kBoxRows * kFp8Block;
    static constexpr int kChannels = kGateUp ? 64 * kGroups : 128 * kGroups;  // of the output per tile
    // Output is transposed here; 16 bytes more per row than needed keep it free of bank conflicts.
    static constexpr int kStagedRow = (kGateUp ? kChannels : 2 * 128) + 16;
    static constexpr int kStagedRows = kGateUp ? kMaxHeight : kGroups * 32;
    static constexpr int kListCluster = kMulticast ? 2 : 1;
    // Scales of rows lie as a thread of the products wants them: those of its columns 8j + 2t, + 1 in a run.
    static constexpr int kScaleRun = kMaxHeight / 4 + (kMaxHeight == 8 ? 6 : 4);
    __host__ __device__ static constexpr int scale_place(int row) {
        return row % 8 / 2 * kScaleRun + row / 8 * 2 + row % 2;
    }
};

template <class C>
struct Fp8Shared {
    alignas(1024) uint8_t weights[C::kStages][2 * C::kBoxBytes];
    alignas(1024) uint8_t rows[C::kStages][C::kMaxHeight * kFp8Block];
    alignas(16) float x_scale[C::kStages][4 * C::kScaleRun];
    alignas(16) float weight_scale[C::kStages][4];
    alignas(16) uint8_t staged[C::kStagedRows * C::kStagedRow];
    float amax[C::kGateUp ? 4 * C::kGroups : 1][C::kMaxHeight];
    float factor[C::kMaxHeight];
    float peer_amax[2][C::kExchange ? C::kMaxHeight : 1];
    uint64_t full[C::kStages], empty[C::kStages], peer_ready;
    MoeWorkList<C::kMaxHeight, C::kListCluster> list;
};

struct Fp8Cursor {
    int stage = 0, phase = 0;
    template <int kStages>
    __device__ __forceinline__ void advance() {
        if (++stage == kStages) stage = 0, phase ^= 1;
    }
};

template <class C>
__device__ __forceinline__ void fp8_produce(const Fp8Job& job, const CUtensorMap& map, Fp8Shared<C>& shared,
                                            int first_item, int item_step, int rank) {
    constexpr int kThreads = 128, kChunks = kFp8Block / 16;
    constexpr int kRowsPerPass = kThreads / kChunks,
                  kPasses = (C::kMaxHeight + kRowsPerPass - 1) / kRowsPerPass;
    const int tid = static_cast<int>(threadIdx.x), chunk = tid % kChunks, first = tid / kChunks;
    const int num_items = shared.list.num_items();
    const auto load_weights = [&](const MoeUnit& unit, int stage, int step) {
        // Boxes: gate and up; or the upper and the lower half of the tile's rows.
        const int box_step = C::kGateUp ? job.weight_rows / 2 : C::kBoxRows;
        int row = unit.weight_tile * (C::kGateUp ? 128 : 2 * C::kBoxRows);
        if (C::kExchange) row += rank * 64;
        ptx::barrier_arrive_expect(shared.full[stage], 2 * C::kBoxBytes);
#pragma unroll
        for (int box = 0; box < 2; ++box) {
            uint8_t* to = shared.weights[stage] + box * C::kBoxBytes;
            if (C::kMulticast && unit.is_weight_shared) {
                if (box == rank)
                    ptx::tma_load_3d_multicast(to, map, shared.full[stage], 3, step * kFp8Block,
                                               row + box * box_step, unit.expert);
            } else {
                ptx::tma_load_3d(to, map, shared.full[stage], step * kFp8Block, row + box * box_step,
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
    if constexpr (!C::kGateUp) {
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
        // Gate and up: the blocks of both halves of the rows; else a block of rows per warpgroup.
        const float* weight_scale = nullptr;
        if (tid < 2) {
            int block = C::kGateUp ? unit.weight_tile + tid * (job.scale_rows / 2)
                                   : unit.weight_tile * C::kGroups + tid * (C::kGroups - 1);
            block = min(block, job.scale_rows - 1);
            weight_scale = job.weight_scale +
                           (static_cast<int64_t>(unit.expert) * job.scale_rows + block) * job.num_steps;
        }
        for (int step = 0; step < job.num_steps; ++step) {
            ptx::barrier_wait(shared.empty[at.stage], at.phase ^ 1);
            if (tid == 0 && ahead <= 0) load_weights(unit, at.stage, step);
            --ahead;
            const uint32_t to = ptx::smem_address(shared.rows[at.stage]);
#pragma unroll
            for (int i = 0; i < kPasses; ++i) {
                const int row = first + i * kRowsPerPass;
                if (row < unit.height)
                    ptx::copy_async_16(to + row * kFp8Block + ((chunk ^ (row & 7)) * 16),
                                       from[i] + step * kFp8Block);
            }
            if (tid < unit.height)
                ptx::copy_async_4(ptx::smem_address(&shared.x_scale[at.stage][C::scale_place(tid)]),
                                  x_scale + step);
            if (tid < 2)
                ptx::copy_async_4(ptx::smem_address(&shared.weight_scale[at.stage][tid]),
                                  weight_scale + step);
            ptx::barrier_arrive_after_copies(shared.full[at.stage]);
            at.template advance<C::kStages>();
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/// acc += part * scale of the column * scale of the block; `x_scale`: this thread's run.
template <int kN>
__device__ __forceinline__ void fp8_promote(float (&acc)[kN / 2], const float (&part)[kN / 2],
                                            const float* x_scale, float weight_scale) {
    const auto promote = [&](int j, float left, float right) {
        left *= weight_scale;
        right *= weight_scale;
        acc[4 * j] = fmaf(part[4 * j], left, acc[4 * j]);
        acc[4 * j + 1] = fmaf(part[4 * j + 1], right, acc[4 * j + 1]);
        acc[4 * j + 2] = fmaf(part[4 * j + 2], left, acc[4 * j + 2]);
        acc[4 * j + 3] = fmaf(part[4 * j + 3], right, acc[4 * j + 3]);
    };
#pragma unroll
    for (int j = 0; j + 1 < kN / 8; j += 2) {
        const float4 s = *reinterpret_cast<const float4*>(x_scale + 2 * j);
        promote(j, s.x, s.y);
        promote(j + 1, s.z, s.w);
    }
    if constexpr (kN / 8 % 2 == 1) {
        const float2 s = *reinterpret_cast<const float2*>(x_scale + kN / 4 - 2);
        promote(kN / 8 - 1, s.x, s.y);
    }
}

template <class C, int kN>
__device__ __forceinline__ void fp8_multiply(float (&acc)[2][kN / 2], Fp8Shared<C>& shared, Fp8Cursor& at,
                                             int num_steps, int group) {
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
        ptx::fence_async_proxy();
        // Half a beat apart: one group scales its sums while the other multiplies.
        if (kStagger && step == 0 && group == 1) ptx::named_barrier(4, 256);
        const float* x_scale = shared.x_scale[at.stage] + lane_idx % 4 * C::kScaleRun;
        const float* weight_scale = shared.weight_scale[at.stage] + (C::kGateUp ? 0 : group);
        if constexpr (kBothHalves) {
            float part[2][kN / 2];
            multiply(part[0], 0);
            multiply(part[1], 1);
            ptx::wgmma_wait<1>();
            ptx::keep_registers(part[0]);
            fp8_promote<kN>(acc[0], part[0], x_scale, weight_scale[0]);
            ptx::wgmma_wait<0>();
            ptx::keep_registers(part[1]);
            fp8_promote<kN>(acc[1], part[1], x_scale, weight_scale[C::kGateUp]);
        } else {
            float part[kN / 2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                multiply(part, h);
                ptx::wgmma_wait<0>();
                ptx::keep_registers(part);
                if (kStagger && step == 0 && h == 0 && group == 0) ptx::named_barrier_arrive(4, 256);
                fp8_promote<kN>(acc[h], part, x_scale, weight_scale[C::kGateUp ? h : 0]);
            }
        }
        if constexpr (C::kMulticast) {
            if (lane_idx < 2) ptx::barrier_arrive_at(shared.empty[at.stage], lane_idx);
        } else {
            if (lane_idx == 0) ptx::barrier_arrive(shared.empty[at.stage]);
        }
        at.template advance<C::kStages>();
    }
}

__device__ __forceinline__ float fast_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

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
__device__ __forceinline__ void fp8_store_gate_up(const Fp8Job& job, float (&acc)[2][kN / 2],
                                                  Fp8Shared<C>& shared, const MoeUnit& unit, int group,
                                                  int turn, int rank) {
    constexpr int kConsumers = 128 * C::kGroups;
    const int tid = static_cast<int>(threadIdx.x) - 128, warp_idx = tid / 32 % 4, lane_idx = tid % 32;
    const int t = lane_idx % 4;
    float (&h)[kN / 2] = acc[0];
    // Few instructions and no calls: this code runs once per tile, straight from the L2.
    if (job.activation == Activation::kSilu) {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) h[i] = h[i] * acc[1][i] * fast_sigmoid(h[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) {
            const float gate = h[i] > job.limit ? job.limit : h[i];
            float up = acc[1][i] > job.limit ? job.limit : acc[1][i];
            up = up < -job.limit ? -job.limit : up;
            h[i] = gate * fast_sigmoid(job.alpha * gate) * (up + 1.0f);
        }
    }
    fp8_column_amax<kN>(shared.amax[group * 4 + warp_idx], h);
    ptx::named_barrier(1, kConsumers);
    float most = 0;
    if (tid < kN) {
#pragma unroll
        for (int i = 0; i < 4 * C::kGroups; ++i) most = fmaxf(most, shared.amax[i][tid]);
    }
    if constexpr (C::kExchange) {
        static_assert(C::kMaxHeight <= 32, "one warp has all rows");
        if (warp_idx == 0) {
            if (tid < kN) ptx::store_at(shared.peer_amax[turn & 1][tid], most, rank ^ 1);
            __syncwarp();
            if (tid == 0) ptx::barrier_publish_at(shared.peer_ready, rank ^ 1);
            ptx::barrier_wait_cluster(shared.peer_ready, turn & 1);
            if (tid < kN) most = fmaxf(most, shared.peer_amax[turn & 1][tid]);
        }
    }
    if (tid < kN) {
        most = fmaxf(most, kFp8LeastAmax);
        shared.factor[tid] = kFp8Max / most;
        if (tid < unit.num_rows && (!C::kExchange || rank == 0))
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
                       unit.weight_tile * 128 + (C::kExchange ? rank * 64 : 0) + column * 16;
        *reinterpret_cast<uint4*>(out) = sorted;
    }
}

template <class C, int kN>
__device__ __forceinline__ void fp8_store_rows(const Fp8Job& job, const float (&acc)[2][kN / 2],
                                               Fp8Shared<C>& shared, const MoeUnit& unit, int group) {
    const int tid = static_cast<int>(threadIdx.x) % 128, warp_idx = tid / 32, lane_idx = tid % 32;
    uint8_t* staged = shared.staged + group * 32 * C::kStagedRow;
    const int channel = (unit.weight_tile * C::kGroups + group) * 128;
    const bool in_range = channel < job.weight_rows;
    bf16* out = static_cast<bf16*>(job.out) + unit.first_row * job.out_stride + channel;
    // Where this lane's matrix row starts: matrices are the halves' rows 0 to 7 and 8 to 15 of the warp.
    const int matrix = lane_idx / 8, column = matrix / 2 * 64 + warp_idx * 16 + matrix % 2 * 8;
#pragma unroll
    for (int j0 = 0; j0 < kN / 8; j0 += 4) {
#pragma unroll
        for (int j = j0; j < kN / 8 && j < j0 + 4; ++j) {
            const uint32_t pairs[4] = {ptx::pack_bf16(acc[0][4 * j], acc[0][4 * j + 1]),
                                       ptx::pack_bf16(acc[0][4 * j + 2], acc[0][4 * j + 3]),
                                       ptx::pack_bf16(acc[1][4 * j], acc[1][4 * j + 1]),
                                       ptx::pack_bf16(acc[1][4 * j + 2], acc[1][4 * j + 3])};
            ptx::store_matrices_transposed(
                ptx::smem_address(staged + ((j - j0) * 8 + lane_idx % 8) * C::kStagedRow + column * 2),
                pairs);
        }
        ptx::named_barrier(2 + group, 128);
        const int count = min(32, unit.num_rows - 8 * j0);
        if (in_range)
            for (int i = tid; i < count * 16; i += 128) {
                const int row = i / 16;
                const uint4 v = *reinterpret_cast<const uint4*>(staged + row * C::kStagedRow + i % 16 * 16);
                *reinterpret_cast<uint4*>(out + (8 * j0 + row) * job.out_stride + i % 16 * 8) = v;
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
    int turn = 0;
    for (int item = first_item; item < num_items; item += item_step, ++turn) {
        const MoeUnit unit = shared.list.unit(item, rank);
        with_height<C::kMaxHeight>(unit.height, [&](auto height) {
            constexpr int kN = decltype(height)::value;
            float acc[2][kN / 2] = {};
            fp8_multiply<C, kN>(acc, shared, at, job.num_steps, group);
            if (!unit.is_valid) return;
            if constexpr (C::kGateUp)
                fp8_store_gate_up<C, kN>(job, acc, shared, unit, group, turn, rank);
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
    fp8_gemm_kernel(const __grid_constant__ Fp8Job job, const __grid_constant__ CUtensorMap map) {
    extern __shared__ uint8_t raw[];
    auto& shared = *reinterpret_cast<Fp8Shared<C>*>(raw + (1024 - ptx::smem_address(raw) % 1024) % 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::kStages; ++i) {
            ptx::barrier_init(shared.full[i], 128 + 1);
            ptx::barrier_init(shared.empty[i], 4 * C::kGroups * (C::kMulticast ? 2 : 1));
        }
        ptx::barrier_init(shared.peer_ready, 1);
        ptx::barrier_init_done();
    }
    // Who writes the offsets is never the direct predecessor of the down projection, and its end was awaited
    // by that predecessor.
    if constexpr (C::kGateUp) {
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
        fp8_produce<C>(job, map, shared, first_item, item_step, rank);
    } else {
        if constexpr (C::kGroups == 2) ptx::take_registers<232>();
        fp8_consume<C>(job, shared, first_item, item_step, rank);
    }
    // A block's shared memory must outlive its neighbour's last arrival there.
    if constexpr (C::kCluster > 1) ptx::cluster_sync();
}

template <class C>
void launch_fp8_gemm(const char* op, const Fp8Job& job, const CUtensorMap& map, Stream stream) {
    const unsigned grid = static_cast<unsigned>(num_multiprocessors() * C::kBlocksPerSm);
    LaunchChain{op,          dim3(grid / C::kCluster * C::kCluster),
                C::kThreads, sizeof(Fp8Shared<C>) + 1024,
                stream,      C::kCluster}(fp8_gemm_kernel<C>, job, map);
}

template <class C>
CUtensorMap fp8_weight_map(const void* weight, int64_t num_experts, int64_t rows, int64_t k) {
    return make_tensor_map<3>(weight, {k, rows, num_experts}, {k, rows * k}, {kFp8Block, C::kBoxRows, 1},
                              CU_TENSOR_MAP_DATA_TYPE_UINT8);
}

}  // namespace mmx::cuda::sm90
