#pragma once

#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/sm90_fp8_tile.cuh"

/// Products of experts with so few rows that latencies count: 192 weight rows a tile, which gives 128 of 132
/// multiprocessors equal shares of the 8 experts of one token. A tile keeps all of its rows, at most 8, over
/// all of k, so that a stage of the ring needs nothing but its box of weights. Sums are made as by the other
/// kernels: a row's result does not depend on which of them runs.
///
/// Few instructions: what is not in the multiprocessor's cache of them comes from the L2, behind the weights
/// that have been asked for. So loops stay loops, and there is one of each.
///
/// The boxes deal the weight rows out so that rows g and g + 8 of a warp, which one thread has, are gate and
/// up of one channel, or two neighbouring channels.
namespace mmx::cuda::sm90 {

inline constexpr int kFp8FewGroups = 3;  // warpgroups that multiply, 64 weight rows each
// Then a warp one thread of which asks for weights, then one that waits for the predecessor in their stead.
inline constexpr int kFp8FewConsumers = 128 * kFp8FewGroups, kFp8FewThreads = kFp8FewConsumers + 64;
inline constexpr int kFp8FewProducer = kFp8FewConsumers, kFp8FewScout = kFp8FewConsumers + 32;
inline constexpr int kFp8FewStageBytes = 64 * kFp8FewGroups * kFp8Block;

struct Fp8FewUnit {
    int expert, first_row, num_rows;  // in plan order
};

struct Fp8FewShared {
    uint64_t full[kFp8FewMaxStages], empty[kFp8FewMaxStages];
    uint64_t first_rows, checked;  // rows of the unit that was guessed are there; `is_right` is known
    bool is_right;
    int num_units;
    Fp8FewUnit units[kFp8FewMaxRows];
    int x_rows[kFp8FewMaxRows];
    int offsets[kMoeMaxExperts + 1];
    int units_of[kMoeMaxExperts / 64];  // of a warp's experts

    /// By the whole block, which sees the list behind its next barrier: the experts that have rows,
    /// kFp8FewHeight of them at a time. Whatever the offsets hold, experts, rows and the number of units are
    /// in bounds. Every thread has two experts: nothing is asked for before, and one warp would take 1 us.
    __device__ __forceinline__ void list_units(const Fp8Job& job) {
        const int tid = static_cast<int>(threadIdx.x), warp_idx = tid / 32;
        const volatile int32_t* from = job.offsets;
#pragma unroll 1
        for (int i = tid; i <= job.num_experts; i += kFp8FewThreads) offsets[i] = from[i];
        __syncthreads();
        int row[3], count[2];
#pragma unroll
        for (int i = 0; i < 3; ++i)
            row[i] = min(max(offsets[min(2 * tid + i, job.num_experts)], 0), job.num_rows);
#pragma unroll
        for (int i = 0; i < 2; ++i)
            count[i] = (max(0, row[i + 1] - row[i]) + kFp8FewHeight - 1) / kFp8FewHeight;
        const int end = warp_prefix_sum(count[0] + count[1]);
        if (tid % 32 == 31 && warp_idx < kMoeMaxExperts / 64) units_of[warp_idx] = end;
        __syncthreads();
        int at = end - count[0] - count[1], all = 0;
#pragma unroll
        for (int i = 0; i < kMoeMaxExperts / 64; ++i) {
            at += i < warp_idx ? units_of[i] : 0;
            all += units_of[i];
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll 1
            for (int begin = row[i]; begin < row[i + 1] && at < kFp8FewMaxRows; begin += kFp8FewHeight)
                units[at++] = {2 * tid + i, begin, min(kFp8FewHeight, row[i + 1] - begin)};
        if (tid == 0) num_units = min(all, kFp8FewMaxRows);
    }

    /// By one warp: whether the offsets still are those of the list.
    __device__ __forceinline__ bool is_current(const Fp8Job& job) const {
        const volatile int32_t* from = job.offsets;
        bool same = true;
#pragma unroll 4
        for (int i = static_cast<int>(threadIdx.x) % 32; i <= job.num_experts; i += 32)
            same &= from[i] == offsets[i];
        return __all_sync(kFull, same);
    }
};

/// Dynamic shared memory: the ring, then of one tile `x` [num_steps, kFp8FewHeight, 128] as the copy engine
/// would leave it, `x_scale` [num_steps, kFp8FewHeight], and for every group two `weight_scale` [num_steps],
/// of rows g and of rows g + 8.
struct Fp8FewBuffers {
    uint8_t *stages, *x;
    float *x_scale, *weight_scale;

    __device__ __forceinline__ Fp8FewBuffers(uint8_t* raw, int num_stages, int num_steps)
        : stages(raw + (1024 - ptx::smem_address(raw) % 1024) % 1024),
          x(stages + num_stages * kFp8FewStageBytes),
          x_scale(reinterpret_cast<float*>(x + num_steps * kFp8FewHeight * kFp8Block)),
          weight_scale(x_scale + num_steps * kFp8FewHeight) {}
    static int64_t bytes(int64_t num_stages, int64_t num_steps) {
        return num_stages * kFp8FewStageBytes +
               num_steps * (kFp8FewHeight * (kFp8Block + 4) + kFp8FewGroups * 2 * 4) + 1024;
    }
};

struct Fp8FewRing {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void advance(int stages) {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
};

/// These two ask for the scales of a tile's weights, by the threads of the products, and for its rows of x,
/// by `num_threads`, in the background.
template <bool kGateUp>
__device__ __forceinline__ void fp8_few_load_weight_scales(const Fp8Job& job, const Fp8FewBuffers& to,
                                                           int expert, int tile) {
    constexpr int kRows = kGateUp ? 32 : 64;  // of gate or of up; or of both
    const int blocks = kGateUp ? job.scale_rows / 2 : job.scale_rows;
    const float* from = job.weight_scale + static_cast<int64_t>(expert) * job.scale_rows * job.num_steps;
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < 2 * kFp8FewGroups * job.num_steps;
         at += kFp8FewConsumers) {
        const int i = at / job.num_steps, step = at - i * job.num_steps;
        const int block = min((tile * kFp8FewGroups + i / 2) * kRows / kFp8Block, blocks - 1);
        ptx::copy_async_4(ptx::smem_address(to.weight_scale + at),
                          from + (block + (kGateUp ? i % 2 * blocks : 0)) * job.num_steps + step);
    }
}

__device__ __forceinline__ void fp8_few_load_rows(const Fp8Job& job, const Fp8FewBuffers& to,
                                                  const Fp8FewShared& shared, const Fp8FewUnit& unit, int tid,
                                                  int num_threads) {
#pragma unroll 1
    for (int row = 0; row < unit.num_rows; ++row) {
        const int64_t from = shared.x_rows[unit.first_row + row];
#pragma unroll 1
        for (int i = tid; i < job.num_steps * 8; i += num_threads)
            ptx::copy_async_16(
                ptx::smem_address(to.x) + (i / 8 * kFp8FewHeight + row) * kFp8Block + ((i % 8) ^ row) * 16,
                job.x + from * job.x_stride + i * 16);
#pragma unroll 1
        for (int step = tid; step < job.num_steps; step += num_threads)
            ptx::copy_async_4(ptx::smem_address(to.x_scale + step * kFp8FewHeight + row),
                              job.x_scale + from * job.num_steps + step);
    }
}

/// acc += products of all steps, each times its scales.
__device__ __forceinline__ void fp8_few_multiply(float (&acc)[4], const Fp8Job& job,
                                                 const Fp8FewBuffers& from, Fp8FewShared& shared,
                                                 Fp8FewRing& ring, int num_stages) {
    const int group = static_cast<int>(threadIdx.x) / 128;
    const float* upper_scale = from.weight_scale + group * 2 * job.num_steps;
    const float* lower_scale = upper_scale + job.num_steps;
    const float* x_scale = from.x_scale + threadIdx.x % 4 * 2;
    const uint32_t weights = ptx::smem_address(from.stages) + group * kFp8Half * kFp8Block;
#pragma unroll 1
    for (int step = 0; step < job.num_steps; ++step) {
        float part[4];
        const ptx::UniformOperand a(weights + ring.stage * kFp8FewStageBytes),
            b(ptx::smem_address(from.x) + step * kFp8FewHeight * kFp8Block);
        ptx::barrier_wait(shared.full[ring.stage], ring.parity);
        ptx::wgmma_begin();
#pragma unroll
        for (int k = 0; k < kFp8Block; k += 32) ptx::Wgmma<kFp8FewHeight>::e4m3(part, a + k, b + k, k > 0);
        ptx::wgmma_commit();
        const float2 s = *reinterpret_cast<const float2*>(x_scale + step * kFp8FewHeight);
        const float upper = upper_scale[step], lower = lower_scale[step];
        ptx::wgmma_wait<0>();
        ptx::keep_registers(part);
        if (threadIdx.x % 32 == 0) ptx::barrier_arrive(shared.empty[ring.stage]);
        acc[0] = fmaf(part[0], s.x * upper, acc[0]);
        acc[1] = fmaf(part[1], s.y * upper, acc[1]);
        acc[2] = fmaf(part[2], s.x * lower, acc[2]);
        acc[3] = fmaf(part[3], s.y * lower, acc[3]);
        ring.advance(num_stages);
    }
}

/// Gate and up: the activation in fp32 to `inner` [.., inter], which another kernel quantises, since a scale
/// is of 128 channels and a tile has 96. Down: bf16.
template <bool kGateUp>
__device__ __forceinline__ void fp8_few_store(const Fp8Job& job, const float (&acc)[4],
                                              const Fp8FewUnit& unit, int tile, float* inner) {
    const int warp = tile * 4 * kFp8FewGroups + static_cast<int>(threadIdx.x) / 32;
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
    const int channel = kGateUp ? warp * 8 + g : warp * 16 + 2 * g;
    if (channel >= (kGateUp ? job.weight_rows / 2 : job.weight_rows)) return;
    float h[2] = {acc[0], acc[1]};
    const float up[2] = {acc[2], acc[3]};
    if constexpr (kGateUp) fp8_activate(job, h, up);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (2 * t + i >= unit.num_rows) continue;
        const int64_t at = (unit.first_row + 2 * t + i) * job.out_stride + channel;
        if constexpr (kGateUp)
            inner[at] = h[i];
        else
            *reinterpret_cast<uint32_t*>(static_cast<bf16*>(job.out) + at) = ptx::pack_bf16(h[i], up[i]);
    }
}

/// Down follows gate and up, which took the same offsets: it asks for the weights of its first tile by what
/// the offsets hold before its predecessor has ended, multiplies them by the rows as soon as these are there,
/// and begins again should the offsets turn out to be others.
template <bool kGateUp>
__global__ void __launch_bounds__(kFp8FewThreads, 1)
    fp8_few_kernel(const __grid_constant__ Fp8Job job, const __grid_constant__ CUtensorMap map, float* inner,
                   int num_stages) {
    extern __shared__ uint8_t raw[];
    __shared__ Fp8FewShared shared;
    const Fp8FewBuffers buffers(raw, num_stages, job.num_steps);
    const int tid = static_cast<int>(threadIdx.x), tiles = job.num_weight_tiles;
    const bool is_producer = tid == kFp8FewProducer, is_consumer = tid < kFp8FewConsumers;
    if (is_producer) {
        ptx::prefetch_map(map);
#pragma unroll 1
        for (int i = 0; i < num_stages; ++i) {
            ptx::barrier_init(shared.full[i], 1);
            ptx::barrier_init(shared.empty[i], 4 * kFp8FewGroups);
        }
        ptx::barrier_init(shared.first_rows, 32);
        ptx::barrier_init(shared.checked, 1);
        ptx::barrier_init_done();
    }
    if constexpr (kGateUp) {
        ptx::wait_for_predecessors();
        ptx::let_successors_start();
    }
    const int row = tid - kFp8FewConsumers;
    const int sorted_row = kGateUp && row >= 0 && row < job.num_rows ? job.sorted_rows[row] : 0;
    const auto is_right = [&] {
        ptx::barrier_wait(shared.checked, 0);
        return shared.is_right;
    };
    Fp8FewRing ring;
    int item = static_cast<int>(blockIdx.x);
    for (bool is_guess = !kGateUp;;) {
        shared.list_units(job);
        if (row >= 0) shared.x_rows[row] = kGateUp ? sorted_row / job.topk : row;
        __syncthreads();
        const int num_items = shared.num_units * tiles;
        if (is_guess && tid >= kFp8FewScout) {
            ptx::wait_for_predecessors();
            ptx::let_successors_start();
            if (item < num_items)
                fp8_few_load_rows(job, buffers, shared, shared.units[item / tiles], tid - kFp8FewScout, 32);
            ptx::commit_copies();
            ptx::wait_for_copies<0>();
            ptx::fence_async_proxy();
            ptx::barrier_arrive(shared.first_rows);
            const bool is_current = shared.is_current(job);
            if (tid == kFp8FewScout) {
                shared.is_right = is_current;
                ptx::barrier_arrive(shared.checked);
            }
        }
        for (; item < num_items; item += static_cast<int>(gridDim.x)) {
            const Fp8FewUnit unit = shared.units[item / tiles];
            const int tile = item % tiles;
            float acc[4] = {};
            if (is_producer) {
#pragma unroll 1
                for (int step = 0; step < job.num_steps; ++step, ring.advance(num_stages)) {
                    uint64_t& full = shared.full[ring.stage];
                    ptx::barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
                    ptx::barrier_arrive_expect(full, kFp8FewStageBytes);
                    ptx::tma_load_5d(buffers.stages + ring.stage * kFp8FewStageBytes, map, full,
                                     step * kFp8Block, 0, 0, tile * 4 * kFp8FewGroups, unit.expert,
                                     ptx::kEvictFirst);
                }
            } else if (is_consumer) {
                ptx::named_barrier(1, kFp8FewConsumers);  // the last rows have been read
                fp8_few_load_weight_scales<kGateUp>(job, buffers, unit.expert, tile);
                if (!is_guess) fp8_few_load_rows(job, buffers, shared, unit, tid, kFp8FewConsumers);
                ptx::commit_copies();
                ptx::wait_for_copies<0>();
                if (!is_guess) ptx::fence_async_proxy();
                ptx::named_barrier(1, kFp8FewConsumers);
                if (is_guess) ptx::barrier_wait(shared.first_rows, 0);
                fp8_few_multiply(acc, job, buffers, shared, ring, num_stages);
            }
            if (is_guess && !is_right()) break;
            is_guess = false;
            if (is_consumer) fp8_few_store<kGateUp>(job, acc, unit, tile, inner);
        }
        if (!is_guess || is_right()) return;
        is_guess = false;
        __syncthreads();  // all have read the former list
    }
}

/// `inner`: [num_rows, inter], of gate and up only.
template <bool kGateUp>
void launch_fp8_few(const char* op, Fp8Job job, const void* weight, float* inner, Stream stream) {
    constexpr int64_t kMaxBytes = 222 * 1024;  // with Fp8FewShared within the 227 KB of a block
    static_assert(kMaxBytes + sizeof(Fp8FewShared) <= 227 * 1024);
    constexpr int64_t kWarps = 4 * kFp8FewGroups;
    const int64_t k = int64_t{job.num_steps} * kFp8Block, n = job.weight_rows, steps = job.num_steps;
    const int64_t near = kGateUp ? 1 : 2;                      // rows g are so many rows apart
    const int64_t far = kGateUp ? n / 2 : 1;                   // row g + 8 is so far from row g
    const int64_t warps = (kGateUp ? n / 2 : n) / (8 * near);  // along a matrix
    const CUtensorMap map = make_tensor_map<5>(
        weight, {k, 8, 2, warps, job.num_experts}, {near * k, far * k, 8 * near * k, n * k},
        {kFp8Block, 8, 2, kWarps, 1}, CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_L2_PROMOTION_NONE);
    const int64_t stages =
        std::min<int64_t>(kFp8FewMaxStages, (kMaxBytes - Fp8FewBuffers::bytes(0, steps)) / kFp8FewStageBytes);
    job.num_weight_tiles = static_cast<int>(ceil_div(warps, kWarps));
    const int64_t blocks = std::min(num_multiprocessors(), int64_t{job.num_rows} * job.num_weight_tiles);
    LaunchChain{op, dim3(static_cast<unsigned>(blocks)), kFp8FewThreads,
                static_cast<size_t>(Fp8FewBuffers::bytes(stages, steps)),
                stream}(fp8_few_kernel<kGateUp>, job, map, inner, static_cast<int>(stages));
}

}  // namespace mmx::cuda::sm90
