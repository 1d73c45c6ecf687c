#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/moe/combine.cuh"

namespace mmx::cuda {

namespace {

constexpr int kPlanThreads = 512;
constexpr int kPlanRun = 4, kPlanRuns = 4;  // rows of one load, loads of a thread at a time
constexpr int kThreads = 256;

/// Exclusive prefix sum of x over the block and, in `total`, its sum. Ends with a barrier behind the last
/// read.
__device__ int block_exclusive_sum(int x, int* total) {
    __shared__ int warp_totals[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int inclusive = warp_prefix_sum(x);
    if (lane == 31) warp_totals[warp] = inclusive;
    __syncthreads();
    const int own = lane < kPlanThreads / 32 ? warp_totals[lane] : 0, up_to = warp_prefix_sum(own);
    *total = __shfl_sync(kFull, up_to, 31);
    const int before = __shfl_sync(kFull, up_to - own, warp);
    __syncthreads();
    return before + inclusive - x;
}

constexpr int kRemote = -1, kNoRow = -2;

/// Local experts of kPlanRun rows, kRemote or kNoRow.
__device__ __forceinline__ void load_experts(int (&experts)[kPlanRun], const MoePlanParams& p, int64_t row0,
                                             bool packable) {
    const int64_t num_rows = p.num_tokens * p.topk;
    int ids[kPlanRun] = {};
    if (packable && row0 + kPlanRun <= num_rows) {
        const int4 run = *reinterpret_cast<const int4*>(p.topk_ids + row0);
        ids[0] = run.x, ids[1] = run.y, ids[2] = run.z, ids[3] = run.w;
    } else {
#pragma unroll
        for (int i = 0; i < kPlanRun; ++i)
            if (row0 + i < num_rows) ids[i] = p.topk_ids[row0 + i];
    }
#pragma unroll
    for (int i = 0; i < kPlanRun; ++i) {
        const int64_t expert = ids[i] - p.first_expert;
        const bool local = expert >= 0 && expert < p.num_local_experts;
        experts[i] = row0 + i >= num_rows ? kNoRow : local ? static_cast<int>(expert) : kRemote;
    }
}

/// kExperts experts per block. It counts the rows of the experts before each of its own, then places its own
/// rows by prefix sums in row order: no atomics, so the order is the same in every run.
template <int kExperts>
__global__ void __launch_bounds__(kPlanThreads) moe_plan_kernel(MoePlanParams p, bool packable) {
    static_assert(kExperts <= 2 && kPlanThreads * kPlanRuns * kPlanRun < 1 << 16);
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int64_t num_rows = p.num_tokens * p.topk;
    const int first = static_cast<int>(blockIdx.x) * kExperts;
    int before[kExperts] = {}, experts[kPlanRuns][kPlanRun];
#pragma unroll 4
    for (int64_t row0 = threadIdx.x * kPlanRun; row0 < num_rows; row0 += kPlanThreads * kPlanRun) {
        load_experts(experts[0], p, row0, packable);
#pragma unroll
        for (int i = 0; i < kPlanRun; ++i) {
#pragma unroll
            for (int g = 0; g < kExperts; ++g) before[g] += experts[0][i] >= 0 && experts[0][i] < first + g;
            if (experts[0][i] == kRemote && first == 0) p.row_positions[row0 + i] = -1;
        }
    }
    int position[kExperts];
#pragma unroll
    for (int g = 0; g < kExperts; ++g) {
        block_exclusive_sum(before[g], &position[g]);
        if (threadIdx.x == 0 && first + g < p.num_local_experts) p.expert_offsets[first + g] = position[g];
    }
    constexpr int kRows = kPlanRuns * kPlanRun;  // of a thread at a time
    for (int64_t base = 0; base < num_rows; base += kPlanThreads * kRows) {
        const int64_t row0 = base + threadIdx.x * kRows;
        int count = 0;  // 16 bits for each expert
#pragma unroll
        for (int run = 0; run < kPlanRuns; ++run) {
            load_experts(experts[run], p, row0 + run * kPlanRun, packable);
#pragma unroll
            for (int i = 0; i < kPlanRun; ++i)
#pragma unroll
                for (int g = 0; g < kExperts; ++g) count += (experts[run][i] == first + g) << 16 * g;
        }
        int total;
        const int places = block_exclusive_sum(count, &total);
#pragma unroll
        for (int g = 0; g < kExperts; ++g) {
            int place = position[g] + (places >> 16 * g & 0xFFFF);
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                if (experts[i / kPlanRun][i % kPlanRun] != first + g) continue;
                p.sorted_rows[place] = static_cast<int32_t>(row0 + i);
                p.row_positions[row0 + i] = place++;
            }
            position[g] += total >> 16 * g & 0xFFFF;
        }
    }
#pragma unroll
    for (int g = 0; g < kExperts; ++g)
        if (threadIdx.x == 0 && first + g == p.num_local_experts - 1)
            p.expert_offsets[first + g + 1] = position[g];
}

template <class T, bool kPackable>
__global__ void __launch_bounds__(kThreads) moe_combine_kernel(MoeCombineParams p) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int64_t token = blockIdx.x;
    const int64_t i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kCombineRun;
    if (i >= p.hidden) return;
    float sum[kCombineRun];
    combine_run<T, kPackable>(sum, p, token, i);
    store_run(static_cast<T*>(p.out) + token * p.out_stride + i, sum, p.hidden - i, kPackable);
}

}  // namespace

int64_t moe_plan_workspace(const MoePlanParams&) { return 0; }

void moe_plan(const MoePlanParams& p, Stream stream) {
    const bool packable = is_aligned16(p.topk_ids);
    const auto launch = [&](auto kernel, int64_t experts) {
        const dim3 grid(static_cast<unsigned>(ceil_div(p.num_local_experts, experts)));
        LaunchChain{"moe_plan", grid, kPlanThreads, 0, stream}(kernel, p, packable);
    };
    // Every block reads all ids: no more blocks than run at once.
    if (p.num_local_experts <= 128)
        launch(moe_plan_kernel<1>, 1);
    else
        launch(moe_plan_kernel<2>, 2);
}

void moe_combine(const MoeCombineParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const bool packable = is_combine_packable<T>(p) && is_packable<T, kCombineRun>(p.out, {p.out_stride});
        const dim3 grid(static_cast<unsigned>(p.num_tokens),
                        static_cast<unsigned>(ceil_div(p.hidden, kThreads * kCombineRun)));
        const LaunchChain launch{"moe_combine", grid, kThreads, 0, stream};
        if (packable)
            launch(moe_combine_kernel<T, true>, p);
        else
            launch(moe_combine_kernel<T, false>, p);
    });
}

}  // namespace mmx::cuda
