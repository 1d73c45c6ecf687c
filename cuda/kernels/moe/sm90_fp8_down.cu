#include "cuda/kernels/moe/choose_fp8.h"
#include "cuda/kernels/moe/sm90_fp8.cuh"
#include "cuda/kernels/moe/sm90_fp8.h"
#include "cuda/kernels/moe/sm90_fp8_few.cuh"
#include "cuda/kernels/moe/sm90_fp8_stream.cuh"
#include "cuda/kernels/moe/sm90_fp8_stream_rows.cuh"
#include "cuda/kernels/moe/sm90_fp8_wide.h"

namespace mmx::cuda::sm90 {

namespace {

/// Rows of the down projection, and of a dense one, which has one expert with all rows.
struct Rows {
    const char* op;
    const void* x;
    const float* x_scale;
    const void* weight;
    const float* weight_scale;
    const int32_t* offsets;
    void* out;
    int64_t out_stride, num_experts, num_rows, n, k;
};

Fp8Job make_job(const Rows& p) {
    const int64_t blocks = p.n / kFp8Block;
    return {.x = static_cast<const uint8_t*>(p.x),
            .x_scale = p.x_scale,
            .weight_scale = p.weight_scale,
            .offsets = p.offsets,
            .sorted_rows = nullptr,
            .out = p.out,
            .out_scale = nullptr,
            .x_stride = p.k,
            .out_stride = p.out_stride,
            .num_experts = static_cast<int>(p.num_experts),
            .num_rows = static_cast<int>(p.num_rows),
            .num_x_rows = static_cast<int>(p.num_rows),
            .topk = 1,
            .num_steps = static_cast<int>(p.k / kFp8Block),
            .scale_rows = static_cast<int>(blocks),
            .weight_rows = static_cast<int>(p.n),
            .num_weight_tiles = 0,
            .activation = Activation::kSilu,
            .alpha = 0,
            .limit = 0};
}

template <class C>
void launch(const Rows& p, Stream stream) {
    Fp8Job job = make_job(p);
    job.num_weight_tiles = static_cast<int>(ceil_div(p.n, int64_t{C::kTileRows}));
    launch_fp8_gemm<C>(p.op, job, p.weight, stream);
}

void launch(Fp8Tile tile, const Rows& p, Stream stream) {
    switch (tile) {
        case Fp8Tile::kStream:
            return launch_fp8_stream(p.op, make_job(p), p.weight,
                                     make_fp8_stream_plan(p.n, num_multiprocessors()), stream);
        case Fp8Tile::kRows:
            return launch_fp8_rows(p.op, make_job(p), p.weight,
                                   make_fp8_rows_plan(p.num_rows, p.n, num_multiprocessors()), stream);
        case Fp8Tile::k64x64: return launch<Fp8Config<false, 64, 64, 6>>(p, stream);
        case Fp8Tile::kFew: return launch_fp8_few<false>(p.op, make_job(p), p.weight, nullptr, stream);
        case Fp8Tile::k256x32: return launch<Fp8Config<false, 256, 32, 5>>(p, stream);
        case Fp8Tile::kWide: return fp8_wide(p.op, make_job(p), p.weight, stream);
    }
}

}  // namespace

void fp8_moe_down(const Fp8MoeDownParams& p, Stream stream) {
    launch(choose_fp8_tile(p.num_rows, p.num_local_experts, p.inter),
           {.op = "fp8_moe_down",
            .x = p.x,
            .x_scale = p.x_scale,
            .weight = p.weight,
            .weight_scale = p.weight_scale,
            .offsets = p.expert_offsets,
            .out = p.out,
            .out_stride = p.hidden,
            .num_experts = p.num_local_experts,
            .num_rows = p.num_rows,
            .n = p.hidden,
            .k = p.inter},
           stream);
}

void fp8_linear(const Fp8LinearParams& p, Stream stream) {
    launch(choose_fp8_dense_tile(p.m, p.n, p.k),
           {.op = "fp8_linear",
            .x = p.x,
            .x_scale = p.x_scale,
            .weight = p.weight,
            .weight_scale = p.weight_scale,
            .offsets = nullptr,
            .out = p.out,
            .out_stride = p.out_stride,
            .num_experts = 1,
            .num_rows = p.m,
            .n = p.n,
            .k = p.k},
           stream);
}

}  // namespace mmx::cuda::sm90
