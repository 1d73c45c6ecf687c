#include <type_traits>

#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/quantize.cuh"
#include "cuda/common/row_sum.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/moe/combine.cuh"

namespace mmx::cuda {

namespace {

constexpr int kRun = 8;

/// How threads share a row. Rows as narrow as a head take a warp each, eight to a block; in rows of up to
/// max_threads runs every thread has one run, which stays in registers between the two passes; wider rows are
/// read twice, the second time from the cache.
enum class RowShape { kWarp, kBlock, kWide };

/// Where codes of the result go.
struct Codes {
    e4m3* codes;   // [num_tokens, hidden]
    float* scale;  // [num_tokens, hidden / kFp8Group]
};

/// What is normed: x; the residual stream after x, or the sum of a token's expert rows, is added.
enum class Input { kX, kAddX, kAddRows };

/// Why fewer for rows of experts: to have several of them on their way takes registers.
constexpr int max_threads(RowShape shape, Input input) {
    if (shape != RowShape::kBlock) return 256;
    return input == Input::kAddRows ? 768 : 1024;
}

/// Why one body for all: the norm of a sum is the same norm, reading the residual stream's new value.
template <class T, class W, RowShape kShape, Input kInput, bool kQuantize>
__global__ void __launch_bounds__(max_threads(kShape, kInput))
    norm_kernel(RmsNormParams p, MoeCombineParams rows, T* residual, int64_t residual_stride, Codes to,
                bool packable) {
    constexpr bool kAdd = kInput != Input::kX;
    // Why 32 bits: a division in 64 bits costs more than the norm of a run.
    constexpr bool kWarpRow = kShape == RowShape::kWarp;
    const unsigned row = kWarpRow ? blockIdx.x * 8 + threadIdx.x / 32 : blockIdx.x;
    const unsigned num_heads = static_cast<unsigned>(p.num_heads), token = row / num_heads;
    const unsigned head = row - token * num_heads, row_threads = kWarpRow ? 32 : blockDim.x;
    const int64_t first = (kWarpRow ? threadIdx.x % 32 : threadIdx.x) * kRun;
    const T* x = static_cast<const T*>(p.x) + token * p.x_token_stride + head * p.x_head_stride;
    T* out = static_cast<T*>(p.out) + token * p.out_token_stride + head * p.out_head_stride;
    if constexpr (kAdd) residual += token * residual_stride;
    const W* weight = static_cast<const W*>(p.weight);
    const auto for_each_run = [&](auto&& f) {
        if constexpr (kShape == RowShape::kWide)
            for (int64_t i = first; i < p.hidden; i += row_threads * kRun) f(i, p.hidden - i);
        else if (first < p.hidden)
            f(first, p.hidden - first);
    };

    float gain[kRun], run[kRun];
    if constexpr (kShape != RowShape::kWide)
        for_each_run([&](int64_t i, int64_t count) { load_run(gain, weight + i, count, packable); });
    // Why later before rows of experts: who comes next fetches weights, and their products are not done.
    if constexpr (kInput != Input::kAddRows) ptx::let_successors_start();
    ptx::wait_for_predecessors();
    if constexpr (kInput == Input::kAddRows) ptx::let_successors_start();
    // The threads of a row leave together, and only a block of several rows can have too many of them.
    if (token >= p.num_tokens) return;

    float squares = 0;
    for_each_run([&](int64_t i, int64_t count) {
        float sum[kRun];
        if constexpr (kAdd) load_run(sum, residual + i, count, packable);
        if constexpr (kInput != Input::kAddRows) {
            load_run(run, x + i, count, packable);
        } else {
            if (packable)
                combine_run<T, true>(run, rows, token, i);
            else
                combine_run<T, false>(run, rows, token, i);
#pragma unroll
            for (int j = 0; j < kRun; ++j) run[j] = to_float(from_float<T>(run[j]));
        }
        if constexpr (kAdd) {
#pragma unroll
            for (int j = 0; j < kRun; ++j) run[j] = to_float(from_float<T>(sum[j] + run[j]));
            store_run(residual + i, run, count, packable);
        }
#pragma unroll
        for (int j = 0; j < kRun; ++j) squares += run[j] * run[j];
    });
    const float row_squares = kWarpRow ? warp_sum(squares) : row_sum(squares);
    const float inv_rms = rsqrtf(row_squares / static_cast<float>(p.hidden) + p.eps);
    const float shift = p.gemma ? 1.0f : 0.0f;
    for_each_run([&](int64_t i, int64_t count) {
        if constexpr (kShape == RowShape::kWide) {
            load_run(run, (kAdd ? residual : x) + i, count, packable);
            load_run(gain, weight + i, count, packable);
        }
#pragma unroll
        for (int j = 0; j < kRun; ++j) run[j] *= inv_rms * (gain[j] + shift);
        store_run(out + i, run, count, packable);
        if constexpr (kQuantize) {
#pragma unroll
            for (int j = 0; j < kRun; ++j) run[j] = to_float(from_float<T>(run[j]));
            const int64_t at = token * p.hidden + i;
            quantize_group(to.codes + at, to.scale + at / kFp8Group, run, packable);
        }
    });
}

template <Input kInput, bool kQuantize = false>
void launch_norm(const char* op, const RmsNormParams& p, const MoeCombineParams& rows, void* residual,
                 int64_t residual_stride, Codes to, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype, [&](auto w) {
            using T = decltype(t);
            using W = decltype(w);
            const bool packable = is_packable<T, kRun>(p.x, {p.x_token_stride, p.x_head_stride}) &&
                                  is_packable<T, kRun>(p.out, {p.out_token_stride, p.out_head_stride}) &&
                                  is_packable<T, kRun>(residual, {residual_stride}) &&
                                  is_packable<e4m3, kRun>(to.codes, {}) &&
                                  is_packable<W, kRun>(p.weight, {}) && is_combine_packable<T>(rows);
            const auto launch = [&](auto kernel, int64_t rows_per_block, int64_t threads) {
                const auto blocks =
                    static_cast<unsigned>(ceil_div(p.num_tokens * p.num_heads, rows_per_block));
                LaunchChain{op, dim3(blocks), dim3(static_cast<unsigned>(threads)), 0, stream}(
                    kernel, p, rows, static_cast<T*>(residual), residual_stride, to, packable);
            };
            if (p.hidden <= 32 * kRun)
                launch(norm_kernel<T, W, RowShape::kWarp, kInput, kQuantize>, 8, 256);
            else if (p.hidden <= max_threads(RowShape::kBlock, kInput) * kRun)
                launch(norm_kernel<T, W, RowShape::kBlock, kInput, kQuantize>, 1,
                       align_up(ceil_div(p.hidden, kRun), 32));
            else
                launch(norm_kernel<T, W, RowShape::kWide, kInput, kQuantize>, 1, 256);
        });
    });
}

template <Input kInput, bool kQuantize = false>
void launch_add_norm(const char* op, const AddRmsNormParams& p, const MoeCombineParams& rows, Codes to,
                     Stream stream) {
    const RmsNormParams norm{
        .out = p.out,
        .x = p.x,
        .weight = p.weight,
        .num_tokens = p.num_tokens,
        .num_heads = 1,
        .hidden = p.hidden,
        .out_token_stride = p.out_stride,
        .out_head_stride = 0,
        .x_token_stride = p.x_stride,
        .x_head_stride = 0,
        .eps = p.eps,
        .gemma = p.gemma,
        .dtype = p.dtype,
        .weight_dtype = p.weight_dtype,
    };
    launch_norm<kInput, kQuantize>(op, norm, rows, p.residual, p.residual_stride, to, stream);
}

}  // namespace

void rms_norm(const RmsNormParams& p, Stream stream) {
    launch_norm<Input::kX>("rms_norm", p, {}, nullptr, 0, {}, stream);
}

void add_rms_norm(const AddRmsNormParams& p, Stream stream) {
    launch_add_norm<Input::kAddX>("add_rms_norm", p, {}, {}, stream);
}

void add_rms_norm_quantize(const AddRmsNormQuantizeParams& p, Stream stream) {
    launch_add_norm<Input::kAddX, true>("add_rms_norm_quantize", p.norm, {},
                                        {static_cast<e4m3*>(p.codes), p.scale}, stream);
}

void combine_add_rms_norm(const CombineAddRmsNormParams& p, Stream stream) {
    const char* op = "combine_add_rms_norm";
    const Codes to{static_cast<e4m3*>(p.codes), p.scale};
    if (p.codes)
        launch_add_norm<Input::kAddRows, true>(op, p.norm, p.combine, to, stream);
    else
        launch_add_norm<Input::kAddRows>(op, p.norm, p.combine, to, stream);
}

}  // namespace mmx::cuda
