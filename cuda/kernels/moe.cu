#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kPlanThreads = 1024;
constexpr int kRowsPerThread = 4;
constexpr int kThreads = 256;
constexpr int kRun = 8;
constexpr int kRowsAtOnce = 4;  // of one token, in its sum

/// Exclusive prefix sum of x over the block and, in `total`, its sum. Ends with a barrier behind the last
/// read.
__device__ int block_exclusive_sum(int x, int* total) {
    __shared__ int warp_totals[kPlanThreads / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int inclusive = warp_prefix_sum(x);
    if (lane == 31) warp_totals[warp] = inclusive;
    __syncthreads();
    int before = 0;
    *total = 0;
    for (int w = 0; w < kPlanThreads / 32; ++w) {
        before += w < warp ? warp_totals[w] : 0;
        *total += warp_totals[w];
    }
    __syncthreads();
    return before + inclusive - x;
}

/// One block per local expert. It counts the rows of the experts before its own, then places its own rows by
/// prefix sums in row order: no atomics, so the order is the same in every run.
__global__ void __launch_bounds__(kPlanThreads) moe_plan_kernel(MoePlanParams p) {
    ptx::wait_for_predecessors();
    const int64_t num_rows = p.num_tokens * p.topk;
    const int64_t expert = blockIdx.x;
    int before = 0;
    for (int64_t row = threadIdx.x; row < num_rows; row += kPlanThreads) {
        const int64_t id = p.topk_ids[row] - p.first_expert;
        const bool is_local = id >= 0 && id < p.num_local_experts;
        before += is_local && id < expert;
        if (!is_local && expert == 0) p.row_positions[row] = -1;
    }
    int position;
    block_exclusive_sum(before, &position);
    if (threadIdx.x == 0) p.expert_offsets[expert] = position;
    for (int64_t base = 0; base < num_rows; base += kPlanThreads * kRowsPerThread) {
        const int64_t row0 = base + threadIdx.x * kRowsPerThread;
        bool mine[kRowsPerThread];
        int count = 0;
#pragma unroll
        for (int i = 0; i < kRowsPerThread; ++i) {
            mine[i] = row0 + i < num_rows && p.topk_ids[row0 + i] - p.first_expert == expert;
            count += mine[i];
        }
        int total;
        int place = position + block_exclusive_sum(count, &total);
#pragma unroll
        for (int i = 0; i < kRowsPerThread; ++i) {
            if (!mine[i]) continue;
            p.sorted_rows[place] = static_cast<int32_t>(row0 + i);
            p.row_positions[row0 + i] = place++;
        }
        position += total;
    }
    if (threadIdx.x == 0 && expert == p.num_local_experts - 1) p.expert_offsets[expert + 1] = position;
}

/// A run as it lies in memory, so that several loads are on their way before the first is looked at.
template <class T, bool kPackable>
struct Run {
    Pack<T, kRun> pack;
    float values[kRun];

    __device__ __forceinline__ void load(const T* from, int64_t count) {
        if constexpr (kPackable)
            pack = *reinterpret_cast<const Pack<T, kRun>*>(from);
        else
            load_run(values, from, count, false);
    }
    __device__ __forceinline__ float operator[](int i) const {
        return kPackable ? to_float(pack.v[i]) : values[i];
    }
};

template <class T, bool kPackable>
__global__ void __launch_bounds__(kThreads) moe_combine_kernel(MoeCombineParams p) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int64_t token = blockIdx.x;
    const int64_t i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
    if (i >= p.hidden) return;
    float sum[kRun] = {};
    Run<T, kPackable> shared, rows[kRowsAtOnce];
    if (p.shared) shared.load(static_cast<const T*>(p.shared) + token * p.shared_stride + i, p.hidden - i);
    const int64_t end = (token + 1) * p.topk;
    for (int64_t first = token * p.topk; first < end; first += kRowsAtOnce) {
        int64_t position[kRowsAtOnce];
        float weight[kRowsAtOnce];
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
            const int64_t row = min(first + r, end - 1);
            position[r] = p.row_positions[row];
            weight[r] = p.topk_weights[row];
        }
        // Why the first row instead of none: loads without branches between them. It is not used.
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r)
            rows[r].load(static_cast<const T*>(p.x) + max(position[r], int64_t{0}) * p.hidden + i,
                         p.hidden - i);
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r)
            if (position[r] >= 0 && first + r < end)
#pragma unroll
                for (int j = 0; j < kRun; ++j) sum[j] = fmaf(weight[r], rows[r][j], sum[j]);
    }
    if (p.shared)
#pragma unroll
        for (int j = 0; j < kRun; ++j) sum[j] += shared[j];
    store_run(static_cast<T*>(p.out) + token * p.out_stride + i, sum, p.hidden - i, kPackable);
}

}  // namespace

int64_t moe_plan_workspace(const MoePlanParams&) { return 0; }

void moe_plan(const MoePlanParams& p, Stream stream) {
    const dim3 grid(static_cast<unsigned>(p.num_local_experts));
    LaunchChain{"moe_plan", grid, kPlanThreads, 0, stream}(moe_plan_kernel, p);
}

void moe_combine(const MoeCombineParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const bool packable = is_packable<T, kRun>(p.x, {p.hidden}) &&
                              is_packable<T, kRun>(p.out, {p.out_stride}) &&
                              is_packable<T, kRun>(p.shared, {p.shared_stride});
        const dim3 grid(static_cast<unsigned>(p.num_tokens),
                        static_cast<unsigned>(ceil_div(p.hidden, kThreads * kRun)));
        const LaunchChain launch{"moe_combine", grid, kThreads, 0, stream};
        if (packable)
            launch(moe_combine_kernel<T, true>, p);
        else
            launch(moe_combine_kernel<T, false>, p);
    });
}

}  // namespace mmx::cuda
