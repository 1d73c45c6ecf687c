#include "cuda/common/quantize.cuh"
#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/sm90_fp8.cuh"
#include "cuda/kernels/moe/sm90_fp8.h"
#include "cuda/kernels/moe/sm90_fp8_few.cuh"
#include "cuda/kernels/moe/sm90_fp8_wide.h"

namespace mmx::cuda::sm90 {

namespace {

Fp8Job make_job(const Fp8MoeGateUpParams& p) {
    const int64_t steps = p.hidden / kFp8Block, tiles = p.inter / kFp8Block;
    return {.x = static_cast<const uint8_t*>(p.x),
            .x_scale = p.x_scale,
            .weight_scale = p.weight_scale,
            .offsets = p.expert_offsets,
            .sorted_rows = p.sorted_rows,
            .out = p.out,
            .out_scale = p.out_scale,
            .x_stride = p.hidden,
            .out_stride = p.inter,
            .num_experts = static_cast<int>(p.num_local_experts),
            .num_rows = static_cast<int>(p.num_tokens * p.topk),
            .num_x_rows = static_cast<int>(p.num_tokens),
            .topk = static_cast<int>(p.topk),
            .num_steps = static_cast<int>(steps),
            .scale_rows = static_cast<int>(2 * tiles),
            .weight_rows = static_cast<int>(2 * p.inter),
            .num_weight_tiles = static_cast<int>(tiles),
            .activation = p.activation,
            .alpha = p.alpha,
            .limit = p.limit};
}

constexpr int kQuantizeThreads = 128, kQuantizeRun = 8;

/// The results of gate and up as e4m3 with a scale per row and 128 channels, of which a half warp has one.
/// Lets its successor start before it waits itself: down may ask for weights while gate and up run.
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_kernel(const __grid_constant__ Fp8Job job, const float* inner) {
    ptx::let_successors_start();
    ptx::wait_for_predecessors();
    const int64_t first = (int64_t{blockIdx.x} * kQuantizeThreads + threadIdx.x) * kQuantizeRun;
    if (first >= job.offsets[job.num_experts] * job.out_stride) return;
    float values[kQuantizeRun];
#pragma unroll
    for (int i = 0; i < kQuantizeRun; i += 4) {
        const float4 v = *reinterpret_cast<const float4*>(inner + first + i);
        values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
    }
    quantize_group(static_cast<e4m3*>(job.out) + first, job.out_scale + first / kFp8Block, values, true);
}

void launch_few(const Fp8MoeGateUpParams& p, Stream stream) {
    const char* op = "fp8_moe_gate_up";
    const Fp8Job job = make_job(p);
    float* inner = static_cast<float*>(p.workspace);
    launch_fp8_few<true>(op, job, p.weight, inner, stream);
    const int64_t threads = job.num_rows * p.inter / kQuantizeRun;
    LaunchChain{op, dim3(static_cast<unsigned>(ceil_div(threads, int64_t{kQuantizeThreads}))),
                kQuantizeThreads, 0, stream}(quantize_kernel, job, static_cast<const float*>(inner));
}

void launch(Fp8Tile tile, const Fp8MoeGateUpParams& p, Stream stream) {
    const char* op = "fp8_moe_gate_up";
    const Fp8Job job = make_job(p);
    if (tile == Fp8Tile::kFew) return launch_few(p, stream);
    if (tile == Fp8Tile::k256x32)
        return launch_fp8_gemm<Fp8Config<true, 256, 32, 5>>(op, job, p.weight, stream);
    fp8_gate_up_wide(op, job, p.weight, p.workspace, stream);
}

}  // namespace

void fp8_moe_gate_up(const Fp8MoeGateUpParams& p, Stream stream) {
    launch(choose_fp8_tile(p.num_tokens * p.topk, p.num_local_experts, p.hidden), p, stream);
}

}  // namespace mmx::cuda::sm90
