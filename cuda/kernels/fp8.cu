#include <algorithm>

#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/gated_act.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/quantize.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/search.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/sm90_fp8.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 256;

// ---- quantiser ------------------------------------------------------------------------------------

constexpr int kRun = 8, kGroupLanes = kFp8Group / kRun;  // a half warp has a group
constexpr int kGroupsAtOnce = 4;                         // loads in flight per thread

/// Group number i of the tensor, counted row by row, is columns 128 * (i % groups) of row i / groups.
template <class T>
__global__ void __launch_bounds__(kThreads) fp8_quantize_kernel(Fp8QuantizeParams p, bool packable) {
    ptx::wait_for_predecessors();
    ptx::let_successors_start();
    const int64_t groups = ceil_div(p.cols, kFp8Group), count = p.rows * groups;
    const int lane = threadIdx.x % kGroupLanes;
    const int64_t first =
        (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kGroupLanes * kGroupsAtOnce;
    // Why not a division for each: 64-bit ones are a hundred instructions.
    int64_t rows[kGroupsAtOnce], columns[kGroupsAtOnce];
    rows[0] = min(first, count - 1) / groups;
    columns[0] = min(first, count - 1) - rows[0] * groups;
#pragma unroll
    for (int j = 1; j < kGroupsAtOnce; ++j) {
        const bool wraps = columns[j - 1] + 1 == groups, ends = wraps && rows[j - 1] + 1 == p.rows;
        rows[j] = rows[j - 1] + (wraps && !ends);
        columns[j] = ends ? columns[j - 1] : wraps ? 0 : columns[j - 1] + 1;
    }
    float values[kGroupsAtOnce][kRun];
#pragma unroll
    for (int j = 0; j < kGroupsAtOnce; ++j) {
        columns[j] = columns[j] * kFp8Group + lane * kRun;
        load_run(values[j], static_cast<const T*>(p.x) + rows[j] * p.x_stride + columns[j],
                 p.cols - columns[j], packable);
    }
    const unsigned half_warp = 0xFFFFu << (threadIdx.x & 16);
    float mine = kFp8LeastAmax;  // of group number lane % kGroupsAtOnce: a division for each would be many
#pragma unroll
    for (int j = 0; j < kGroupsAtOnce; ++j) {
        const float most = group_amax(values[j]);
        if (lane % kGroupsAtOnce == j) mine = most;
    }
    if (lane < kGroupsAtOnce && first + lane < count) p.scale[first + lane] = mine / kFp8Max;
    const float my_factor = kFp8Max / mine;
#pragma unroll
    for (int j = 0; j < kGroupsAtOnce; ++j) {
        const float factor = __shfl_sync(half_warp, my_factor, j, kGroupLanes);
        if (first + j >= count) continue;
#pragma unroll
        for (int k = 0; k < kRun; ++k) values[j][k] *= factor;
        store_run(static_cast<e4m3*>(p.out) + rows[j] * p.cols + columns[j], values[j], p.cols - columns[j],
                  packable);
    }
}

// ---- products of any size -------------------------------------------------------------------------

/// Row m of expert e times its weights. One warp per output: the yardstick of the fast kernels and what odd
/// sizes run on.
struct Product {
    const e4m3* x;               // [.., k]
    const float* x_scale;        // [.., steps]
    const e4m3* weight;          // [num_experts, weight_rows, k]
    const float* weight_scale;   // [num_experts, ceil(weight_rows / 128), steps]
    const int32_t* offsets;      // [num_experts + 1]; or null, one expert with num_rows rows
    const int32_t* sorted_rows;  // row m is x[sorted_rows[m] / topk]; or null, x[m]
    void* out;                   // [.., n], rows of out_stride
    int64_t out_stride, topk, num_experts, num_rows, weight_rows, n, k, steps;
    Activation activation;  // these three for gate and up only
    float alpha, limit;
};

__device__ float dot(const Product& p, int64_t expert, int64_t x_row, int64_t weight_row) {
    const e4m3* x = p.x + x_row * p.k;
    const e4m3* weight = p.weight + (expert * p.weight_rows + weight_row) * p.k;
    const float* x_scale = p.x_scale + x_row * p.steps;
    const float* weight_scale =
        p.weight_scale + (expert * ceil_div(p.weight_rows, kFp8Group) + weight_row / kFp8Group) * p.steps;
    float sum = 0;
    for (int64_t step = 0; step < p.steps; ++step) {
        const int64_t end = min(p.k, (step + 1) * kFp8Group);
        float part = 0;
        for (int64_t i = step * kFp8Group + threadIdx.x % 32; i < end; i += 32)
            part = fmaf(to_float(x[i]), to_float(weight[i]), part);
        sum = fmaf(part, x_scale[step] * weight_scale[step], sum);
    }
    return warp_sum(sum);
}

template <bool kGateUp, class T>
__global__ void __launch_bounds__(kThreads) fp8_product_kernel(Product p) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    const int64_t num_rows = p.offsets ? p.offsets[p.num_experts] : p.num_rows;
    if (n >= p.n) return;
    for (int64_t m = blockIdx.y; m < num_rows; m += gridDim.y) {
        const int64_t expert = p.offsets ? place_in(p.offsets, p.num_experts, m) : 0;
        const int64_t x_row = p.sorted_rows ? p.sorted_rows[m] / p.topk : m;
        float result = dot(p, expert, x_row, n);
        if constexpr (kGateUp)
            result = gated_act(result, dot(p, expert, x_row, p.n + n), p.activation, p.alpha, p.limit);
        if (threadIdx.x % 32 == 0) static_cast<T*>(p.out)[m * p.out_stride + n] = from_float<T>(result);
    }
}

template <bool kGateUp, class T>
void launch_product(const char* op, const Product& p, Stream stream) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.n, int64_t{kThreads / 32})),
                    static_cast<unsigned>(std::min<int64_t>(p.num_rows, 65535)));
    Launch{op, grid, kThreads, 0, stream}(fp8_product_kernel<kGateUp, T>, p);
}

bool is_sm90(const Fp8MoeGateUpParams& p) {
    return sm90_fp8_fits(p) && is_aligned16(p.x) && is_aligned16(p.weight) && is_aligned16(p.out);
}

}  // namespace

void fp8_quantize(const Fp8QuantizeParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const bool packable =
            is_packable<T, kRun>(p.x, {p.x_stride}) && is_packable<e4m3, kRun>(p.out, {p.cols});
        const int64_t groups = ceil_div(p.cols, kFp8Group) * p.rows;
        const dim3 grid(
            static_cast<unsigned>(ceil_div(groups, int64_t{kThreads / kGroupLanes * kGroupsAtOnce})));
        LaunchChain{"fp8_quantize", grid, kThreads, 0, stream}(fp8_quantize_kernel<T>, p, packable);
    });
}

int64_t fp8_moe_gate_up_workspace(const Fp8MoeGateUpParams& p) { return fp8_gate_up_workspace_bytes(p); }

void fp8_moe_gate_up(const Fp8MoeGateUpParams& p, Stream stream) {
    if (is_sm90(p)) return sm90::fp8_moe_gate_up(p, stream);
    MMX_CHECK(!sm90_fp8_fits(p), "fp8_moe_gate_up: x, weight and out must be 16-byte aligned");
    const int64_t num_rows = p.num_tokens * p.topk;
    launch_product<true, float>("fp8_moe_gate_up",
                                {.x = static_cast<const e4m3*>(p.x),
                                 .x_scale = p.x_scale,
                                 .weight = static_cast<const e4m3*>(p.weight),
                                 .weight_scale = p.weight_scale,
                                 .offsets = p.expert_offsets,
                                 .sorted_rows = p.sorted_rows,
                                 .out = p.workspace,
                                 .out_stride = p.inter,
                                 .topk = p.topk,
                                 .num_experts = p.num_local_experts,
                                 .num_rows = num_rows,
                                 .weight_rows = 2 * p.inter,
                                 .n = p.inter,
                                 .k = p.hidden,
                                 .steps = ceil_div(p.hidden, kFp8Group),
                                 .activation = p.activation,
                                 .alpha = p.alpha,
                                 .limit = p.limit},
                                stream);
    fp8_quantize({.out = p.out,
                  .scale = p.out_scale,
                  .x = p.workspace,
                  .rows = num_rows,
                  .cols = p.inter,
                  .x_stride = p.inter,
                  .dtype = DType::kF32},
                 stream);
}

void fp8_moe_down(const Fp8MoeDownParams& p, Stream stream) {
    if (sm90_fp8_fits(p) && is_aligned16(p.x) && is_aligned16(p.weight) && is_aligned16(p.out))
        return sm90::fp8_moe_down(p, stream);
    dispatch_float(p.out_dtype, [&](auto t) {
        launch_product<false, decltype(t)>("fp8_moe_down",
                                           {.x = static_cast<const e4m3*>(p.x),
                                            .x_scale = p.x_scale,
                                            .weight = static_cast<const e4m3*>(p.weight),
                                            .weight_scale = p.weight_scale,
                                            .offsets = p.expert_offsets,
                                            .sorted_rows = nullptr,
                                            .out = p.out,
                                            .out_stride = p.hidden,
                                            .topk = 1,
                                            .num_experts = p.num_local_experts,
                                            .num_rows = p.num_rows,
                                            .weight_rows = p.hidden,
                                            .n = p.hidden,
                                            .k = p.inter,
                                            .steps = ceil_div(p.inter, kFp8Group),
                                            .activation = Activation::kSilu,
                                            .alpha = 0,
                                            .limit = 0},
                                           stream);
    });
}

void fp8_linear(const Fp8LinearParams& p, Stream stream) {
    if (sm90_fp8_fits(p) && is_aligned16(p.x) && is_aligned16(p.weight) && is_aligned16(p.out))
        return sm90::fp8_linear(p, stream);
    dispatch_float(p.out_dtype, [&](auto t) {
        launch_product<false, decltype(t)>("fp8_linear",
                                           {.x = static_cast<const e4m3*>(p.x),
                                            .x_scale = p.x_scale,
                                            .weight = static_cast<const e4m3*>(p.weight),
                                            .weight_scale = p.weight_scale,
                                            .offsets = nullptr,
                                            .sorted_rows = nullptr,
                                            .out = p.out,
                                            .out_stride = p.out_stride,
                                            .topk = 1,
                                            .num_experts = 1,
                                            .num_rows = p.m,
                                            .weight_rows = p.n,
                                            .n = p.n,
                                            .k = p.k,
                                            .steps = ceil_div(p.k, kFp8Group),
                                            .activation = Activation::kSilu,
                                            .alpha = 0,
                                            .limit = 0},
                                           stream);
    });
}

}  // namespace mmx::cuda
